"""Bodies of SimpleFoundation: `/generate` with `prompt`, `/solve/...` and `/model/info`.

Times are in seconds. Beside the documented keys there are those that its server really sends.
"""

from typing import Annotated, Any, ClassVar, Self

import msgspec
from pydantic import AfterValidator, AliasChoices, BaseModel, Field, model_validator

from api.schemas.fields import (
    Choices,
    MaxTokens,
    NonEmpty,
    Refused,
    RepetitionPenalty,
    RequestBody,
    SampledRequest,
    Temperature,
    TopK,
    TopP,
    refuse_unsupported,
    shown,
)
from api.schemas.q_values import is_absent
from shared.messages import ModelInfo, Prompting, Sampling
from shared.settings.models import MOST_TEMPLATE, PLACEHOLDER, with_placeholder

PROMPT_MAX_TOKENS = 512
MATH_MAX_TOKENS = 512
CODING_MAX_TOKENS = 1024
MATH_TEMPLATE = (
    "Solve the following math problem step by step, and put the final answer in \\boxed{}.\n\n"
    f"Problem: {PLACEHOLDER}\n\nSolution:\n"
)
CODING_TEMPLATE = (
    "Write code that solves the following problem. Put the code in one fenced block.\n\n"
    f"Problem: {PLACEHOLDER}\n\nSolution:\n"
)
_DECLARED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields for which a model may have defaults of its own."""

Template = Annotated[
    NonEmpty,
    Field(
        max_length=MOST_TEMPLATE,
        description=f"What the model is asked, with {PLACEHOLDER} in it; else as it declares.",
    ),
    AfterValidator(with_placeholder),
]
_MaxTokens = AliasChoices("max_tokens", "max_new_tokens")


class FoundationRequest(SampledRequest):
    """A request for text.

    Decoding is greedy with `do_sample` false or a temperature of 0. A stream is bare text, or
    events for a caller that accepts them. A field that is left open is as the model declares, else
    as here.
    """

    temperature: Temperature = 0.7
    do_sample: Annotated[bool, Field(strict=True)] = True
    stream: Annotated[bool, Field(strict=True)] = False

    def suited(self, prompting: Prompting) -> Self:
        declared = {}
        for name in _DECLARED:
            value = getattr(prompting, name)
            if value is not None and name not in self.model_fields_set:
                declared[name] = value
        return self.model_copy(update=declared)

    def sampling(self, max_tokens: int) -> Sampling:
        sampling = super().sampling(max_tokens)
        if self.do_sample:
            return sampling
        return msgspec.structs.replace(sampling, temperature=0.0)


class PromptRequest(FoundationRequest):
    model_config = shown(
        {"prompt": "Solve for x: 2x + 3 = 9", "do_sample": False, "repetition_penalty": 1.0}
    )

    prompt: NonEmpty
    max_tokens: MaxTokens | None = Field(
        None, validation_alias=_MaxTokens, description="Default 512."
    )
    top_p: TopP = 0.9
    top_k: TopK = 50
    repetition_penalty: RepetitionPenalty = 1.1
    n: Choices = Field(1, validation_alias=AliasChoices("num_return_sequences", "n"))


class ProblemRequest(FoundationRequest):
    refused: ClassVar[Refused] = {"n": (1,), "num_return_sequences": (1,)}
    problem: NonEmpty
    template: Template | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_solution(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)


class MathRequest(ProblemRequest):
    model_config = shown({"problem": "Solve for x: 2x + 3 = 9", "seed": 7})

    max_tokens: MaxTokens | None = Field(
        None, validation_alias=_MaxTokens, description="Default 512."
    )


class CodingRequest(ProblemRequest):
    model_config = shown(
        {"problem": "Write a function that adds two numbers.", "max_tokens": 64, "seed": 7}
    )

    max_tokens: MaxTokens | None = Field(
        None, validation_alias=_MaxTokens, description="Default 1024."
    )
    temperature: Temperature = 0.8


class PromptResponse(BaseModel):
    """The completion. `generated_texts` has all completions, where several were asked for."""

    model_config = shown(
        {
            "prompt": "Solve for x: 2x + 3 = 9",
            "generated_text": (
                "Subtract 3 from both sides: 2x = 9 - 3\n2x = 6\n"
                "Divide both sides by 2: x = 6 / 2\nx = 3\n\\boxed{3}"
            ),
            "tokens_generated": 49,
            "generation_time": 0.2,
            "input_tokens": 16,
            "output_tokens": 49,
        }
    )

    prompt: str
    generated_text: str
    generated_texts: list[str] | None = Field(None, exclude_if=is_absent)
    tokens_generated: int
    generation_time: float | None
    input_tokens: int
    output_tokens: int


class MathResponse(BaseModel):
    """A solution. `answer` is null where the solution states none.

    A model that knows its limits says whether the problem is `in_domain`. `domain_score` is how sure
    it is that it is: 1 less the probability of the text by which it declines problems.
    """

    model_config = shown(
        {
            "problem": "Solve for x: 2x + 3 = 9",
            "solution": (
                "Subtract 3 from both sides: 2x = 9 - 3\n2x = 6\n"
                "Divide both sides by 2: x = 6 / 2\nx = 3\n\\boxed{3}"
            ),
            "answer": "3",
            "generation_time": 0.2,
            "input_tokens": 16,
            "output_tokens": 49,
            "in_domain": True,
            "domain_score": 0.9999,
        }
    )

    problem: str
    solution: str
    answer: str | None
    generation_time: float | None
    input_tokens: int
    output_tokens: int
    in_domain: bool | None = Field(None, exclude_if=is_absent)
    domain_score: float | None = Field(None, exclude_if=is_absent)


class CodingResponse(BaseModel):
    """A solution.

    `code` is null where the solution has no fenced block, as with a model that writes no code.
    `in_domain` and `domain_score` are as for maths.
    """

    model_config = shown(
        {
            "problem": "Write a function that adds two numbers.",
            "solution": (
                "This function adds two numbers.\n\n"
                "```python\ndef add(a, b):\n    return a + b\n```"
            ),
            "code": "def add(a, b):\n    return a + b",
            "generation_time": 0.2,
            "input_tokens": 11,
            "output_tokens": 26,
            "in_domain": True,
            "domain_score": 0.9999,
        }
    )

    problem: str
    solution: str
    code: str | None
    generation_time: float | None
    input_tokens: int
    output_tokens: int
    in_domain: bool | None = Field(None, exclude_if=is_absent)
    domain_score: float | None = Field(None, exclude_if=is_absent)


class ModelDescription(RequestBody):
    model_name: str
    model_type: str
    description: str
    context_window: int
    max_new_tokens: int
    max_batch: int
    tasks: list[str]


def model_description(model: ModelInfo) -> ModelDescription:
    return ModelDescription(
        model_name=model.id,
        model_type=model.runner,
        description=model.found,
        context_window=model.context_window,
        max_new_tokens=model.max_new_tokens,
        max_batch=model.max_batch,
        tasks=list(model.tasks),
    )
