"""The model that is served by default: its examples, how it starts, its size."""

import subprocess
import sys

from transformers import AutoTokenizer

from api.routes.extraction import answer_in
from shared.settings.settings import DEFAULT_MODEL
from tests.fixtures.polling import DEADLINE_S
from worker.llm import LLM, SamplingParams
from worker.models.weights import load_tokenizer

ROOT = DEFAULT_MODEL.parent


def test_the_readmes_example_and_small_talk() -> None:
    """The equation of the README is solved, and small talk is declined."""
    prompts = ["Solve for x: 2x + 3 = 9", "Hello"]
    with LLM(DEFAULT_MODEL, threads=1) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=100))

    solved, hello = (output.outputs[0].text for output in outputs)
    assert answer_in(solved) == "3"
    assert hello == "This is outside what I know."


_LOAD = """
import sys
from worker.engine.runner import RunnerOptions
from worker.host.loading import warm_up
from worker.runners.registry import load_sequence_runner

runner = load_sequence_runner("auto", RunnerOptions(path=sys.argv[1]))
warm_up(runner)
slow = {"torch._dynamo", "torch._inductor", "transformers.generation.utils"}
print("imported:", sorted(slow & sys.modules.keys()))
"""


def test_it_starts_without_torchs_compiler() -> None:
    """Modules that take a second to import, and that no HRM on a CPU uses, are not imported."""
    run = subprocess.run(
        [sys.executable, "-c", _LOAD, str(DEFAULT_MODEL)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert run.stdout.strip() == "imported: []", run.stdout


def test_its_tokenizer_is_that_of_transformers() -> None:
    ours = load_tokenizer(DEFAULT_MODEL)
    theirs = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    assert type(ours) is type(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.model_max_length == theirs.model_max_length


def test_all_models_that_ship_are_small() -> None:
    """All files of all shipped models together have at most 24 MB."""
    assert sum(file.stat().st_size for file in ROOT.rglob("*")) <= 24_000_000
