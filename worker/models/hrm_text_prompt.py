"""The tokens around a prompt with which HRM-Text was trained.

They are strings here. Their ids are the tokenizer's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

RAW = "raw"
"""The condition of a prompt that has its marks already, or needs none."""

USUAL = "direct"
"""The condition of a prompt that names none, if the tokenizer has its token."""

CONDITIONS = {
    "direct": "<|object_ref_start|>",
    "cot": "<|object_ref_end|>",
    "noisy": "<|quad_start|>",
    "synth": "<|quad_end|>",
}


@dataclass(frozen=True)
class PromptMarks:
    """Tokens around a prompt and its response.

    Their order is boq, one token for each condition, the prompt, eoq, the response, eoa.
    `conditions` maps names to tokens.
    """

    boq: str
    eoq: str
    eoa: str
    conditions: Mapping[str, str]
