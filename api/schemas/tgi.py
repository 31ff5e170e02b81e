"""Bodies of text-generation-inference: `inputs` and `parameters` in, one text and its tokens out.

The wire's facts are in TGI's own documentation of `/generate` and `/generate_stream`.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from pydantic import AliasChoices, BaseModel, Field, RootModel, model_validator

from api.schemas.fields import (
    MAX_TOKEN_ID,
    MaxTokens,
    NonEmpty,
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
_NEUTRAL: dict[str, Sequence[Any]] = {
    "best_of": (1,),
    "n": (1,),
    "typical_p": (1.0,),
    "watermark": (False,),
    "decoder_input_details": (False,),
    "grammar": (),
    "adapter_id": (),
}


class TgiParameters(SampledRequest):
    """Greedy unless `do_sample` is true, or is not given and a temperature, top_k or top_p is."""

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
        return refuse_unsupported(value, _NEUTRAL)

    @property
    def is_sampled(self) -> bool:
        return bool(_WARPERS & self.model_fields_set) if self.do_sample is None else self.do_sample

    def sampling(self, max_tokens: int) -> Sampling:
        sampling = super().sampling(max_tokens)
        return sampling if self.is_sampled else msgspec.structs.replace(sampling, temperature=0.0)


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
        """The work; `with_tokens` when each of them will be told."""
        given = self.parameters
        task = given.task(self.inputs, max_tokens)
        sampling = msgspec.structs.replace(
            task.sampling, logprobs=(given.top_n_tokens or 0) if with_tokens else None
        )
        return msgspec.structs.replace(task, sampling=sampling, max_prompt_tokens=given.truncate)


class TgiToken(BaseModel):
    """`special`: it ends the answer and is no text. `logprob` is null where it was not asked
    for."""

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
        {"generated_text": "2x = 9 - 3\n+(009-003) 06 00 00\n2x = 6\nx = 6 / 2\nx = 3"}
    )

    generated_text: str
    details: TgiDetails | None = Field(None, exclude_if=is_absent)


class TgiResponses(RootModel[list[TgiResponse]]):
    """The answer of `POST /`."""

    model_config = shown(
        [{"generated_text": "2x = 9 - 3\n+(009-003) 06 00 00\n2x = 6\nx = 6 / 2\nx = 3"}]
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
    """A missing seed is drawn here, since it is told."""
    given = body.parameters
    if given.is_sampled and given.seed is None:
        given.seed = draw_seed()
    return TgiNotes(
        body.inputs if given.return_full_text else "",
        given.details,
        bool(given.stop),
        given.top_n_tokens or 0,
        given.seed if given.is_sampled else None,
    )


def finish_reason(reason: str, notes: TgiNotes, last_text: str) -> str:
    """TGI's word for it, by the text that the last token adds."""
    if reason != "stop":
        return "length"
    return "stop_sequence" if notes.has_stops and last_text else "eos_token"


def token_bodies(
    ids: Sequence[int], logprobs: Sequence[TokenLogprob], *, is_end: bool
) -> list[TgiToken]:
    """`is_end`: the last of them ended the answer by itself. Without log-probabilities their texts
    are not known."""
    if not logprobs:
        return [TgiToken(id=id, text="", logprob=None) for id in ids]
    last = len(ids) - 1
    return [
        TgiToken(
            id=id,
            text=item.token,
            logprob=item.logprob,
            special=is_end and at == last and not item.token,
        )
        for at, (id, item) in enumerate(zip(ids, logprobs, strict=True))
    ]


def top_bodies(item: TokenLogprob) -> list[TgiToken]:
    return [TgiToken(id=id, text=text, logprob=logprob) for id, text, logprob in item.top]


def response(outcome: Outcome, notes: TgiNotes) -> TgiResponse:
    [choice] = outcome.choices
    text = notes.prefix + choice.text
    if not notes.has_details:
        return TgiResponse(generated_text=text, details=None)
    last_text = choice.logprobs[-1].token if choice.logprobs else ""
    details = TgiDetails(
        finish_reason=finish_reason(choice.finish_reason, notes, last_text),
        generated_tokens=outcome.usage.completion_tokens,
        seed=notes.seed,
        tokens=token_bodies(choice.ids, choice.logprobs, is_end=choice.finish_reason == "stop"),
        top_tokens=[top_bodies(item) for item in choice.logprobs] if notes.top_n else None,
    )
    return TgiResponse(generated_text=text, details=details)
