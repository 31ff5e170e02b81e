"""Bodies of text-generation-inference: `inputs` and `parameters` in, one text and its tokens out.

The wire's facts are in TGI's own documentation of `/generate` and `/generate_stream`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import AliasChoices, BaseModel, Field, RootModel, model_validator

from api.schemas.fields import (
    MAX_TOKEN_ID,
    MaxTokens,
    NonEmpty,
    Refused,
    RequestBody,
    SampledRequest,
    Stops,
    draw_seed,
    refuse_unsupported,
    shown,
)
from api.schemas.q_values import is_absent
from api.stream.request_events import Outcome
from shared.messages import Generate, Sampling, TokenLogprob

DEFAULT_MAX_TOKENS = 100
MAX_TOP_TOKENS = 5
_WARPERS = frozenset({"temperature", "top_k", "top_p"})
_REFUSED: Refused = {
    "best_of": (1,),
    "n": (1,),
    "typical_p": (1.0,),
    "watermark": (False,),
    "decoder_input_details": (False,),
    "grammar": (),
    "adapter_id": (),
}


class TgiParameters(SampledRequest):
    """The parameters of a completion.

    Tokens are sampled if `do_sample` is true, or if it is not given and a temperature, top_k or
    top_p is. Else decoding is greedy.
    """

    refused: ClassVar[Refused] = _REFUSED
    max_tokens: MaxTokens | None = Field(
        None,
        validation_alias=AliasChoices("max_new_tokens", "max_tokens"),
        description="Default 100.",
    )
    stop: Stops = Field(
        default_factory=list, validation_alias=AliasChoices("stop", "stop_sequences")
    )
    do_sample: Annotated[bool, Field(strict=True)] | None = None
    details: Annotated[bool, Field(strict=True, description="Tell of each token.")] = False
    return_full_text: Annotated[
        bool, Field(strict=True, description="The prompt comes before the answer.")
    ] = False
    top_n_tokens: Annotated[int, Field(strict=True, ge=0, le=MAX_TOP_TOKENS)] | None = None
    truncate: (
        Annotated[
            int, Field(strict=True, ge=1, le=MAX_TOKEN_ID, description="Keep the prompt's end.")
        ]
        | None
    ) = None

    @model_validator(mode="before")
    @classmethod
    def _only_supported(cls, value: Any) -> Any:
        return refuse_unsupported(value, cls.refused)

    @property
    def is_sampled(self) -> bool:
        """True if tokens are sampled, by the rule of TGI."""
        if self.do_sample is not None:
            return self.do_sample
        return bool(_WARPERS & self.model_fields_set)

    def sampling(self, max_tokens: int) -> Sampling:
        sampling = super().sampling(max_tokens)
        if self.is_sampled:
            return sampling
        return msgspec.structs.replace(sampling, temperature=0.0)


class TgiRequest(RequestBody):
    model_config = shown(
        {"inputs": "Solve for x: 2x + 3 = 9", "parameters": {"max_new_tokens": 60}},
        {"inputs": "Compute: 3 + 4", "parameters": {"max_new_tokens": 2, "details": True}},
    )

    inputs: NonEmpty
    parameters: TgiParameters = Field(default_factory=lambda: TgiParameters.model_validate({}))
    stream: Annotated[bool, Field(strict=True)] = False
    model: str | None = None

    def task(self, max_tokens: int, *, with_tokens: bool) -> Generate:
        """Return the work. The answer will list its tokens if it is `with_tokens`."""
        parameters = self.parameters
        task = parameters.task(self.inputs, max_tokens)
        logprobs = None
        if with_tokens:
            logprobs = parameters.top_n_tokens or 0
        return msgspec.structs.replace(
            task,
            sampling=msgspec.structs.replace(task.sampling, logprobs=logprobs),
            max_prompt_tokens=parameters.truncate,
        )


class TgiToken(BaseModel):
    """A token of an answer.

    A `special` one ends the answer and has no text. `logprob` is null where it was not asked for.
    """

    id: int
    text: str
    logprob: float | None
    special: bool = False


class TgiDetails(BaseModel):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[TgiToken] = []
    tokens: list[TgiToken]
    top_tokens: list[list[TgiToken]] | None = Field(None, exclude_if=is_absent)


class TgiResponse(BaseModel):
    model_config = shown(
        {
            "generated_text": (
                "Subtract 3 from both sides: 2x = 9 - 3\n2x = 6\n"
                "Divide both sides by 2: x = 6 / 2\nx = 3\n\\boxed{3}"
            )
        }
    )

    generated_text: str
    details: TgiDetails | None = Field(None, exclude_if=is_absent)


class TgiResponses(RootModel[list[TgiResponse]]):
    """The answer of `POST /`."""

    model_config = shown(
        [
            {
                "generated_text": (
                    "Subtract 3 from both sides: 2x = 9 - 3\n2x = 6\n"
                    "Divide both sides by 2: x = 6 / 2\nx = 3\n\\boxed{3}"
                )
            }
        ]
    )


class TgiNotes(msgspec.Struct, frozen=True):
    """Notes for rendering an answer.

    `prefix` comes before the text; `seed` is None for a greedy answer.
    """

    prefix: str
    has_details: bool
    has_stops: bool
    top_n: int
    seed: int | None


def notes_of(body: TgiRequest) -> TgiNotes:
    """Return the notes for rendering the answer to a body.

    A missing seed is drawn here and set in the body, because the answer tells it.
    """
    parameters = body.parameters
    if parameters.is_sampled and parameters.seed is None:
        parameters.seed = draw_seed()
    prefix = ""
    if parameters.return_full_text:
        prefix = body.inputs
    seed = None
    if parameters.is_sampled:
        seed = parameters.seed
    return TgiNotes(
        prefix=prefix,
        has_details=parameters.details,
        has_stops=bool(parameters.stop),
        top_n=parameters.top_n_tokens or 0,
        seed=seed,
    )


def finish_reason(reason: str, notes: TgiNotes, last_text: str) -> str:
    """Return TGI's word for the reason. `last_text` is the text that the last token adds."""
    if reason != "stop":
        return "length"
    if notes.has_stops and last_text:
        return "stop_sequence"
    return "eos_token"


def token_bodies(
    ids: Sequence[int], logprobs: Sequence[TokenLogprob], *, is_end: bool
) -> list[TgiToken]:
    """Return the bodies of some tokens.

    `is_end` tells that the last of them ended the answer by itself. Without log-probabilities the
    texts are not known.
    """
    if not logprobs:
        return [TgiToken(id=id, text="", logprob=None) for id in ids]
    tokens = []
    for id, logprob in zip(ids, logprobs, strict=True):
        tokens.append(TgiToken(id=id, text=logprob.token, logprob=logprob.logprob))
    last = tokens[-1]
    last.special = is_end and not last.text
    return tokens


def top_bodies(logprob: TokenLogprob) -> list[TgiToken]:
    """Return the bodies of the likeliest tokens in the place of one."""
    return [TgiToken(id=id, text=text, logprob=value) for id, text, value in logprob.top]


def response(outcome: Outcome, notes: TgiNotes) -> TgiResponse:
    [choice] = outcome.choices
    text = notes.prefix + choice.text
    if not notes.has_details:
        return TgiResponse(generated_text=text, details=None)
    last_text = ""
    if choice.logprobs:
        last_text = choice.logprobs[-1].token
    top_tokens = None
    if notes.top_n:
        top_tokens = [top_bodies(logprob) for logprob in choice.logprobs]
    details = TgiDetails(
        finish_reason=finish_reason(choice.finish_reason, notes, last_text),
        generated_tokens=outcome.usage.completion_tokens,
        seed=notes.seed,
        tokens=token_bodies(choice.ids, choice.logprobs, is_end=choice.finish_reason == "stop"),
        top_tokens=top_tokens,
    )
    return TgiResponse(generated_text=text, details=details)
