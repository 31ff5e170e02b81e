"""One run of `aios batch run`: read the input, answer what is open, and arrange the output."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Hashable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from api.batches.line_answers import fault_answer
from api.batches.lines import LineFault
from scripts.cli.batch.answerer import Answerer
from scripts.cli.batch.fleet_lines import FleetLines
from scripts.cli.batch.input_file import (
    InputFile,
    id_of_answer,
    id_of_line,
    numbers_of,
)
from scripts.cli.batch.new_files import NewFiles
from scripts.cli.batch.tally import BatchTally, summary
from scripts.cli.fleet_tool import EXIT_FAILED, ToolError
from scripts.cli.runs.output import Output, RunHeader
from scripts.cli.runs.progress import Progress, waiting
from shared.settings.command_line import EXIT_INTERRUPTED, EXIT_OK
from shared.settings.settings import Settings
from shared.signals import signals_call

_MOST_LINE_BYTES = 256 << 20


def run_batch(args: SimpleNamespace, settings: Settings | None) -> int:
    """Answer the lines that have no answer yet, and return the exit status.

    Models of the settings answer, or the server that the flags name. Raise SettingsError for a
    model that cannot be loaded, and ToolError if the run cannot go on.
    """
    if args.output.resolve() == args.input.resolve():
        raise ToolError(f"{args.output}: expected another file for the answers")
    max_line_bytes = _MOST_LINE_BYTES
    if settings is not None:
        max_line_bytes = max(settings.max_body_bytes, settings.max_inline_bytes)
    file = InputFile(args.input, max_line_bytes)
    numbers = asyncio.run(numbers_of(file))
    header = RunHeader("", _options_of_run(args, settings))
    if args.retry_failed and args.output.exists():
        with closing(_opened(args, header, BatchTally())) as output:
            output.arrange(lambda line: None if line["error"] else line["line"])

    tally = BatchTally()
    seconds = 0.0
    with closing(_opened(args, header, tally)) as output:
        tally.begin()
        if not output.done.issuperset(numbers):
            progress = Progress(sys.stderr, len(numbers), is_shown=not args.no_progress)
            begin = _beginning(args, settings, output.header.id, progress)
            run = BatchRun(file, output, tally, progress)
            started_s = time.monotonic()
            is_whole = False
            try:
                is_whole = asyncio.run(run.until_stopped(begin))
            finally:
                progress.clear()
                if not is_whole:
                    done = f"{tally.num_done} of {len(numbers)} lines are in {args.output}"
                    print(f"{done}; the same command goes on from there", file=sys.stderr)
            if not is_whole:
                return EXIT_INTERRUPTED
            seconds = time.monotonic() - started_s
        output.arrange(lambda line: numbers.get(id_of_answer(line)))
    print(*summary(tally, seconds), args.output, sep="\n")
    return EXIT_FAILED if tally.num_failed else EXIT_OK


class BatchRun:
    """The lines that have no answer yet, on their way from the input to the output."""

    def __init__(
        self,
        file: InputFile,
        output: Output[Hashable],
        tally: BatchTally,
        progress: Progress,
    ) -> None:
        self._output = output
        self._tally = tally
        self._progress = progress
        self._lines = file.lines()
        self._reading = asyncio.Lock()

    async def until_stopped(self, begin: Callable[[], Answerer]) -> bool:
        """Answer all lines, or as many as come before a signal. Return whether it was all.

        Raise ToolError if the run cannot go on.
        """
        stop = asyncio.Event()
        with signals_call({"SIGINT": stop.set, "SIGTERM": stop.set}):
            answerer = begin()
            stopping = asyncio.create_task(stop.wait())
            working = asyncio.create_task(self._all(answerer))
            try:
                await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not working.done():
                    return False
                await working
                return True
            finally:
                stopping.cancel()
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                await answerer.close()

    async def _all(self, answerer: Answerer) -> None:
        self._progress.draw(self._tally, num_new=0)
        some = [asyncio.create_task(self._some(answerer)) for _ in range(answerer.most_at_once)]
        try:
            await asyncio.gather(*some)
        finally:
            for task in some:
                task.cancel()
            await asyncio.gather(*some, return_exceptions=True)

    async def _some(self, answerer: Answerer) -> None:
        """Answer one line after the other, until there is none."""
        while True:
            async with self._reading:
                line = await anext(self._lines, None)
            if line is None:
                return
            if id_of_line(line) in self._output.done:
                continue
            if isinstance(line, LineFault):
                answer = fault_answer(self._output.header.id, line)
            else:
                answer = await answerer.answer(line)
            self._output.write([json.loads(answer.text)])
            self._progress.draw(self._tally, self._tally.num_new)


def _opened(args: SimpleNamespace, header: RunHeader, tally: BatchTally) -> Output[Hashable]:
    return Output(args.output, header, tally, id_of_answer, restarts=args.restart)


def _options_of_run(args: SimpleNamespace, settings: Settings | None) -> dict[str, Any]:
    """Return the options on which the answers depend."""
    models = None
    if settings is not None:
        models = [f"{entry.id}={Path(entry.path).absolute()}" for entry in settings.models]
    return {"model": args.model, "url": args.url, "models": models}


def _beginning(
    args: SimpleNamespace, settings: Settings | None, run_id: str, progress: Progress
) -> Callable[[], Answerer]:
    """Return a function that begins to answer lines, once the event loop runs.

    Raise SettingsError for a model that cannot be loaded.
    """
    new_files = NewFiles(args.output)
    if settings is None:
        return partial(
            FleetLines,
            args.url,
            run_id,
            new_files,
            model=args.model,
            most_at_once=args.concurrency,
            patience_s=args.patience,
            note=progress.note,
            api_key=args.api_key,
        )
    # These load torch.
    from scripts.cli.batch.local_models import LocalModels
    from worker.__main__ import prepare_process
    from worker.host.loading import load_models

    with waiting("loading models"):
        prepare_process(settings)
        loaded = load_models(settings)
    return partial(LocalModels, loaded, settings, run_id, new_files)
