"""Compare `aios batch run` with the engine that it uses, in turns within one process.

python -m scripts.bench.batch_run --lines 256

Both answer the same problems of arithmetic greedily with one loaded model. The engine's side is
given tokens and steps until all are answered. The other side reads a file of requests and writes
one of answers.
"""

import argparse
import asyncio
import io
import json
import tempfile
from functools import partial
from pathlib import Path

from scripts.bench.maths import problems_of, responses_to
from scripts.bench.measure import Comparison, header, take_turns
from scripts.cli.batch.batch_run import BatchRun
from scripts.cli.batch.input_file import InputFile, id_of_answer
from scripts.cli.batch.local_models import LocalModels
from scripts.cli.batch.new_files import NewFiles
from scripts.cli.batch.tally import BatchTally
from scripts.cli.runs.output import Output, RunHeader
from scripts.cli.runs.progress import Progress
from scripts.train.evaluate_text import MAX_TOKENS
from shared.settings.settings import DEFAULT_MODEL, ModelEntry, Settings
from worker.engine.runner import Runner
from worker.host.loading import LoadedModel, load_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(DEFAULT_MODEL))
    parser.add_argument("--lines", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    entry = ModelEntry(id="m", path=args.model)
    settings = Settings(models=(entry,), device="cpu", threads=1)
    (model,) = load_models(settings)
    runner: Runner = model.runner  # type: ignore[assignment]
    problems = problems_of("sum", args.lines)
    print(header(model=Path(args.model).name, lines=args.lines, threads=1))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lines = []
        for number, problem in enumerate(problems):
            body = {"prompt": problem.prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
            line = {"custom_id": str(number), "url": "/v1/completions", "body": body}
            lines.append(json.dumps(line) + "\n")
        (folder / "in.jsonl").write_text("".join(lines))
        turns = take_turns(
            args.rounds,
            run=partial(_texts_of_run, model, settings, folder),
            engine=partial(responses_to, runner, problems),
        )
    comparison = Comparison()
    for run, engine in zip(turns["run"], turns["engine"], strict=True):
        assert run.value == engine.value, "both give the same answers"
        comparison.add(run.seconds, engine.seconds)
    print(comparison.rates("aios batch run", args.lines, "lines/s", ("run", "engine")))


def _texts_of_run(model: LoadedModel, settings: Settings, folder: Path) -> list[str]:
    """Return the texts of all answers, as a run has written them."""
    file = InputFile(folder / "in.jsonl", settings.max_body_bytes)
    out = folder / "out.jsonl"
    tally = BatchTally()
    output = Output(out, RunHeader("", {}), tally, id_of_answer, restarts=True)
    progress = Progress(io.StringIO(), 0)
    run = BatchRun(file, output, tally, progress)
    begin = partial(LocalModels, [model], settings, "run", NewFiles(out))
    assert asyncio.run(run.until_stopped(begin))
    output.close()
    texts = {}
    for text in out.read_text().splitlines():
        answer = json.loads(text)
        texts[int(answer["custom_id"])] = answer["response"]["body"]["choices"][0]["text"]
    return [texts[number] for number in sorted(texts)]


if __name__ == "__main__":
    main()
