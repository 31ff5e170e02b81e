"""A fleet as a model of lm-evaluation-harness.

Texts go to the fleet as texts: it knows the model's tokenizer, and the marks around a prompt.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from api.batches.lines import BatchLine
from scripts.cli.batch.fleet_lines import FleetLines

_MAX_TOKENS = 256
"""The length of a text for which a task sets none."""
_PARAMETERS = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
}
_IGNORED = {"until", "do_sample", "max_gen_toks", "max_new_tokens", "max_tokens"}
"""Arguments of a task that have become other ones."""


class Dialogue(str):
    """A dialogue as JSON, in the place of a prompt."""


@dataclass(frozen=True)
class _Call:
    """One request to the fleet, with the harness's instances that it answers.

    `answers_of` reads them off the body of the answer, in order.
    """

    url: str
    body: Mapping[str, Any]
    instances: Sequence[Instance]
    answers_of: Callable[[Any], Sequence[Any]]


class HrmFleet(LM):  # type: ignore[misc]
    """The model `model` of the fleet at `url`, or its default one.

    Each request to the fleet has up to `batch_size` texts, and `num_concurrent` are under way at a
    time. They wait for a fleet that is away, for `patience` seconds. Requests are named by `run`: a
    second run of the same name takes the answers that the fleet still has. `condition` and
    `scoring` are those of `/loglikelihood`. The harness's own flags `--use_cache` and `--limit`
    work, too.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        model: str | None = None,
        *,
        api_key: str | None = None,
        batch_size: int | str = 16,
        num_concurrent: int = 16,
        patience: int = 300,
        run: str | None = None,
        condition: str | None = None,
        scoring: str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self._url = url
        self._api_key = api_key
        self._batch_size = 16
        if not str(batch_size).startswith("auto"):
            self._batch_size = int(batch_size)
        self._num_concurrent = num_concurrent
        self._patience = patience
        self._run = run or secrets.token_hex(8)
        self._fields: dict[str, Any] = {}
        for name, value in (("model", model), ("condition", condition)):
            if value is not None:
                self._fields[name] = value
        self._scoring = {} if scoring is None else {"scoring": scoring}

    @property
    def tokenizer_name(self) -> str:
        """Return the name by which the harness keeps dialogues apart from those of other models."""
        return f"hrm-fleet {self._url} {self._fields.get('model', '')}"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a dialogue, to which the fleet applies the model's own template."""
        return Dialogue(json.dumps(chat_history))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return the log-likelihood (nats) of each continuation, and whether it is greedy."""
        calls = []
        for part in _parts(requests, self._batch_size):
            contexts = [_text(instance.args[0]) for instance in part]
            body = {
                **self._fields,
                **self._scoring,
                "prompts": contexts,
                "continuations": [instance.args[1] for instance in part],
            }
            calls.append(_Call("/loglikelihood", body, part, _scores))
        return self._answers("loglikelihood", requests, calls)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood (nats) of each text, of any length."""
        calls = []
        for part in _parts(requests, self._batch_size):
            texts = [instance.args[0] for instance in part]
            body = {**self._fields, **self._scoring, "prompts": texts}
            calls.append(_Call("/loglikelihood_rolling", body, part, _rolling_scores))
        return self._answers("loglikelihood_rolling", requests, calls)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return a text for each prompt, as long as the task allows and up to its stop."""
        calls = []
        alike: dict[str, list[Instance]] = {}
        for instance in requests:
            context, arguments = instance.args
            sampling = _sampling_of(arguments)
            if isinstance(context, Dialogue):
                body = {**self._fields, **sampling, "messages": json.loads(context)}
                calls.append(_Call("/v1/chat/completions", body, [instance], _replies))
            else:
                alike.setdefault(json.dumps(sampling, sort_keys=True), []).append(instance)
        for sampling_json, instances in alike.items():
            for part in _parts(instances, self._batch_size):
                prompts = [instance.args[0] for instance in part]
                body = {**self._fields, **json.loads(sampling_json), "prompts": prompts}
                calls.append(_Call("/generate", body, part, _completions))
        return self._answers("generate_until", requests, calls)

    def _answers(
        self, kind: str, requests: Sequence[Instance], calls: Sequence[_Call]
    ) -> list[Any]:
        """Make the calls, and return the answers in the order of the requests.

        Raise RuntimeError for a request that the fleet refuses.
        """
        answers: dict[int, Any] = {}
        with tqdm(total=len(requests), desc=kind) as bar:

            def note(instance: Instance, answer: Any) -> None:
                answers[id(instance)] = answer
                self.cache_hook.add_partial(kind, instance.args, answer)
                bar.update()

            asyncio.run(self._make(calls, note))
        return [answers[id(instance)] for instance in requests]

    async def _make(self, calls: Sequence[_Call], note: Callable[[Instance, Any], None]) -> None:
        fleet = FleetLines(
            self._url,
            f"lm-eval-{self._run}",
            None,
            model=None,
            most_at_once=self._num_concurrent,
            patience_s=self._patience,
            note=tqdm.write,
            api_key=self._api_key,
        )
        numbered = enumerate(calls, start=1)

        async def work() -> None:
            for number, call in numbered:
                line = BatchLine(number, call.url, call.url, json.dumps(call.body).encode())
                answer = json.loads((await fleet.answer(line)).text)
                if answer["error"] is not None:
                    raise RuntimeError(f"{call.url}: {answer['error']['message']}")
                texts = call.answers_of(answer["response"]["body"])
                for instance, text in zip(call.instances, texts, strict=True):
                    note(instance, text)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._num_concurrent):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await fleet.close()


def _parts(instances: Sequence[Instance], size: int) -> Iterator[Sequence[Instance]]:
    for start in range(0, len(instances), size):
        yield instances[start : start + size]


def _text(context: str) -> str:
    if isinstance(context, Dialogue):
        raise RuntimeError("Dialogues cannot be scored: run without --apply_chat_template.")
    return context


def _sampling_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request for the arguments that a task gives its texts.

    Raise RuntimeError for an argument that has no counterpart here.
    """
    stop = arguments.get("until") or []
    sampling: dict[str, Any] = {"stop": [stop] if isinstance(stop, str) else list(stop)}
    sampling["max_tokens"] = _MAX_TOKENS
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens"):
        if name in arguments:
            sampling["max_tokens"] = int(arguments[name])
    for name, value in arguments.items():
        if name in _PARAMETERS:
            sampling[name] = value
        elif name not in _IGNORED:
            raise RuntimeError(f"The argument {name!r} of the task cannot be obeyed by a fleet.")
    if not arguments.get("do_sample", sampling.get("temperature", 0) > 0):
        sampling["temperature"] = 0.0
    return sampling


def _scores(body: Any) -> list[tuple[float, bool]]:
    return list(zip(body["ll"], body["is_greedy"], strict=True))


def _rolling_scores(body: Any) -> list[float]:
    return list(body["ll"])


def _completions(body: Any) -> list[str]:
    return list(body["completions"])


def _replies(body: Any) -> list[str]:
    return [body["choices"][0]["message"]["content"]]
