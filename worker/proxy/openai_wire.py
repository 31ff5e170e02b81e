"""The bodies of OpenAI's dialect as servers answer them, with the fields that some of them add.

Fields that are not read here are ignored, and those that a server leaves out have defaults.
"""

import msgspec


class ListedMeta(msgspec.Struct):
    """More facts of a model at llama.cpp: `n_ctx` is the window of a request."""

    n_ctx: int | None = None


class ListedModel(msgspec.Struct):
    """A model of `/v1/models`. vLLM and this fleet tell its window as `max_model_len`."""

    id: str
    owned_by: str = ""
    max_model_len: int | None = None
    meta: ListedMeta | None = None

    @property
    def window(self) -> int | None:
        if self.max_model_len is None and self.meta is not None:
            return self.meta.n_ctx
        return self.max_model_len


class ModelList(msgspec.Struct):
    data: list[ListedModel]


class CompletionLogprobs(msgspec.Struct):
    """The log-probabilities of `/v1/completions`: a list for each fact of a token.

    llama.cpp has the form of a chat here, too.
    """

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    content: "list[ChatLogprob] | None" = None


class RankedToken(msgspec.Struct):
    """A token of a chat and its log-probability. llama.cpp tells its id."""

    token: str
    logprob: float | None = None
    id: int | None = None


class ChatLogprob(RankedToken):
    top_logprobs: list[RankedToken] | None = None


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob] | None = None


class CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: CachedTokens | None = None


class CompletionChoice(msgspec.Struct):
    """A choice of a completion, whole or in part. vLLM tells the ids of its tokens if asked."""

    index: int = 0
    text: str = ""
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Completion(msgspec.Struct):
    choices: list[CompletionChoice] = []
    usage: Usage | None = None


class Delta(msgspec.Struct):
    content: str | None = None


class ChatChoice(msgspec.Struct):
    index: int = 0
    delta: Delta = msgspec.field(default_factory=Delta)
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class ChatChunk(msgspec.Struct):
    choices: list[ChatChoice] = []
    usage: Usage | None = None


class LogLikelihoods(msgspec.Struct):
    """This fleet's own scores, of `/loglikelihood` and `/loglikelihood_rolling`."""

    ll: list[float]
    num_tokens: list[int]
    is_greedy: list[bool] = []
