"""The tokens between which HRM-Text was trained to see a prompt. Strings only; ids are the
tokenizer's."""

from collections.abc import Mapping
from dataclasses import dataclass

RAW = "raw"
"""The condition of a prompt that carries its marks itself, or wants none."""

USUAL = "direct"
"""The condition of a prompt that names none, where a tokenizer knows it."""

CONDITIONS = {
    "direct": "<|object_ref_start|>",
    "cot": "<|object_ref_end|>",
    "noisy": "<|quad_start|>",
    "synth": "<|quad_end|>",
}


@dataclass(frozen=True)
class PromptMarks:
    """boq, one token for each condition, prompt, eoq; then the response up to eoa. `conditions`
    maps name to token."""

    boq: str
    eoq: str
    eoa: str
    conditions: Mapping[str, str]
