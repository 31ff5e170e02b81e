"""Models that an engine elsewhere serves: vLLM, TGI, llama.cpp, Ollama, or another fleet of ours.

The runner knows the engine's facts, asked once at load, and reads tasks into requests. The engine
is asked for its answers by `worker/engine/remote_engine.py`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from shared.errors import FleetError, InvalidRequest
from shared.messages import Chat, Task, TaskName, Turn
from shared.settings.text import reason
from shared.tasks.runner_options import ProxyOptions
from shared.tasks.runner_table import is_url
from worker.engine.remote_runner import ONE_TOKEN, Connection, RemoteRunnerSpec, Unanswered
from worker.engine.runner import RunnerOptions
from worker.models.errors import ModelAway, ModelFormatError
from worker.proxy.openai_dialect import OpenAIConnection, OpenAIFacts, ask_facts, question_of
from worker.proxy.tgi_dialect import TgiConnection, TgiFacts, ask_tgi_facts, tgi_question_of
from worker.proxy.upstream import Address, Upstream

_DEFAULT_WINDOW = 4096
_API = "/v1"


class Proxy:
    """A model of an engine elsewhere, with what the engine said of itself."""

    def __init__(
        self, spec: RemoteRunnerSpec, address: Address, facts: OpenAIFacts | TgiFacts
    ) -> None:
        self.spec = spec
        self._address = address
        self._facts = facts

    def read(self, task: Task) -> Any:
        """Return a task as a request. Raise InvalidRequest for what the engine cannot do."""
        if isinstance(self._facts, TgiFacts):
            return tgi_question_of(task, self._facts)
        return question_of(task, self._facts)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Yield the connections to the engine, for one event loop."""
        async with Upstream(self._address) as upstream:
            if isinstance(self._facts, TgiFacts):
                yield TgiConnection(upstream)
            else:
                yield OpenAIConnection(upstream, self._facts)


def load(options: RunnerOptions) -> Proxy:
    """Ask the engine at a URL what it is.

    Raise ModelFormatError for options that do not fit it, and ModelAway if it does not answer.
    """
    own = options.declared(ProxyOptions)
    address = _address_of(options.path, own)
    try:
        facts = asyncio.run(_ask(address, own, is_api=_is_api(options.path)))
    except Unanswered as error:
        raise ModelAway(f"No engine answers at {options.path}: {error}.") from error
    except InvalidRequest as error:
        raise ModelFormatError(error.message) from error
    except FleetError as error:
        raise ModelAway(error.message) from error

    tasks: list[TaskName] = ["generate"]
    trial = ONE_TOKEN
    dialect = "tgi"
    if isinstance(facts, OpenAIFacts):
        if not facts.completes:
            trial = replace(ONE_TOKEN, prompt=Chat((Turn("user", "1"),)))
        dialect = facts.owner or "openai"
        if facts.scoring is not None:
            tasks.append("score")
        if facts.echo_tokens is not None:
            tasks.append("read")
    spec = RemoteRunnerSpec(
        "proxy",
        options.name,
        found=f"proxy: {facts.model or 'a model'} of an engine elsewhere ({dialect})",
        context_window=facts.window or options.context_window or _DEFAULT_WINDOW,
        max_batch=own.concurrency,
        tasks=tuple(tasks),
        retries=own.retries,
        trial=trial,
    )
    return Proxy(spec, address, facts)


async def _ask(address: Address, own: ProxyOptions, *, is_api: bool) -> OpenAIFacts | TgiFacts:
    """Ask an engine for its dialect, unless that is set, and for its facts."""
    async with Upstream(address) as upstream:
        if own.dialect == "tgi":
            return await ask_tgi_facts(upstream)
        # Both kinds may have `/v1/models`; only TGI has `/info`, which tells more.
        if own.dialect is None and not is_api:
            try:
                return await ask_tgi_facts(upstream)
            except FleetError:
                pass
        return await ask_facts(upstream, own.upstream_model)


def _is_api(url: str) -> bool:
    """Return whether a URL ends with the path of OpenAI's dialect."""
    return url.rstrip("/").endswith(_API)


def _address_of(url: str, own: ProxyOptions) -> Address:
    """Return the address that a URL and the options name. Raise ModelFormatError."""
    problem = f"expected the URL of an engine, such as http://localhost:8001/v1, got {url!r}"
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
    except ValueError as error:
        raise ModelFormatError(f"{problem}: {error}.") from None
    if not is_url(url) or not has_host:
        raise ModelFormatError(f"{problem}.")
    if parts.username or parts.query:
        raise ModelFormatError(
            "a key does not belong into the URL: name its file by api_key_file, or its variable by "
            "api_key_env."
        )
    return Address(
        url.rstrip("/").removesuffix(_API),
        _key_of(own),
        connect_timeout_s=own.connect_timeout_s,
        silence_timeout_s=own.silence_timeout_s,
    )


def _key_of(own: ProxyOptions) -> str | None:
    """Return the key for the engine, None where none is named. Raise ModelFormatError."""
    if own.api_key_file is not None:
        try:
            key = Path(own.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            problem = f"api_key_file: cannot read {own.api_key_file!r}: {reason(error)}"
            raise ModelFormatError(f"{problem}.") from None
        if not key:
            raise ModelFormatError(f"api_key_file: {own.api_key_file!r} is empty.")
        return key
    if own.api_key_env is not None:
        key = os.environ.get(own.api_key_env, "")
        if not key:
            raise ModelFormatError(f"api_key_env: the variable {own.api_key_env} is not set.")
        return key
    return None
