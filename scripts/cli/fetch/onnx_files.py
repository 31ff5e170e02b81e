"""Models that are ONNX files in a package: the files, and the YAML that declares what they do."""

import json
import shutil
from pathlib import Path

# The silence before a sound, and the states that the graph carries from chunk to chunk, are zeros.
_SILERO = """\
task: voice-activity-detection
input:
  name: input
  rate: 16000
  chunk: 512
  context: 64
  states:
    - {input: state, output: stateN, shape: [2, batch, 128]}
constants: {sr: 16000}
output: {name: output}
"""
_PP_OCR = """\
task: optical-character-recognition
finder:
  file: finder.onnx
  input: {colours: BGR, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
reader:
  file: reader.onnx
  input: {height: 48, colours: BGR, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
  vocabulary: characters.json
  blank: 0
"""
_CHARACTERS = "character"
"""The name in the metadata of a reader of lines, under which its characters stand."""


def silero_vad(package: Path, target: Path) -> None:
    """Write the detector of speech of an unpacked package. Raise ValueError if it is not there."""
    file = package / "silero_vad" / "data" / "silero_vad.onnx"
    if not file.is_file():
        raise ValueError(f"expected {file.relative_to(package)}")
    target.mkdir()
    shutil.copy(file, target / "model.onnx")
    (target / "model.yaml").write_text(_SILERO, encoding="utf-8")


def pp_ocr(package: Path, target: Path) -> None:
    """Write the finder and the reader of lines of an unpacked package.

    Raise ValueError if one is not there, or does not tell its characters.
    """
    import onnxruntime

    finder = _only(package, "*_det_*.onnx")
    reader = _only(package, "*_rec_*.onnx")
    session = onnxruntime.InferenceSession(str(reader), providers=["CPUExecutionProvider"])
    # A character a line, and only "\n" ends one: others that end lines elsewhere are among them.
    listed = session.get_modelmeta().custom_metadata_map.get(_CHARACTERS, "")
    characters = listed.removesuffix("\n").split("\n")
    num_tokens = session.get_outputs()[0].shape[2]
    if len(characters) + 2 != num_tokens:
        raise ValueError(f"{reader.name} knows {num_tokens} tokens, and names {len(characters)}")

    target.mkdir()
    shutil.copy(finder, target / "finder.onnx")
    shutil.copy(reader, target / "reader.onnx")
    # The blank token comes first, and the space last.
    names = json.dumps(["", *characters, " "], ensure_ascii=False)
    (target / "characters.json").write_text(names, encoding="utf-8")
    (target / "model.yaml").write_text(_PP_OCR, encoding="utf-8")


def _only(package: Path, pattern: str) -> Path:
    files = sorted(package.glob(f"**/{pattern}"))
    if len(files) != 1:
        raise ValueError(f"expected one {pattern}, found {len(files)}")
    return files[0]
