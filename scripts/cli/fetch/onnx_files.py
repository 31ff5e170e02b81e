"""Models that are an ONNX file in a package: the file, and the YAML that declares what it does."""

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


def silero_vad(package: Path, target: Path) -> None:
    """Write the detector of speech of an unpacked package. Raise ValueError if it is not there."""
    file = package / "silero_vad" / "data" / "silero_vad.onnx"
    if not file.is_file():
        raise ValueError(f"expected {file.relative_to(package)}")
    target.mkdir()
    shutil.copy(file, target / "model.onnx")
    (target / "model.yaml").write_text(_SILERO, encoding="utf-8")
