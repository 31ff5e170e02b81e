"""The tokens around a prompt, as HRM-Text was trained with them. Strings only; their ids are the
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
    """Tokens around a prompt: boq, one for each condition, the prompt, eoq, and the response up to
    eoa. `conditions` maps names to tokens."""

    boq: str
    eoq: str
    eoa: str
    conditions: Mapping[str, str]
