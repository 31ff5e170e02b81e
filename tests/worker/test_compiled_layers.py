"""Compiled layers of HRM-Text compute what plain ones compute.

All layers and widths share the compilations. Only the tracing is tested here; `test_gpu_decode.py`
runs the compiler, too, on a GPU.
"""

from pathlib import Path

import pytest
import torch
from torch import fx

from shared.messages import Generate, Sampling
from tests.fixtures.logged import fields_of
from tests.fixtures.tiny_hrm_text import PROMPTS, write_tiny
from tests.fixtures.worker.stepping import generate_all
from worker.engine.runner import RunnerOptions
from worker.kv.attention import AttentionPlan, Span
from worker.runners import hrm_text
from worker.runners.hrm_text import HrmTextNet

CPU = torch.device("cpu")


def plan_of(num_tokens: int, *, is_causal: bool) -> AttentionPlan:
    """Plan one row of `num_tokens` tokens without anything stored."""
    positions = torch.arange(num_tokens)
    span = Span(0, num_tokens, positions[None], has_fresh=True, is_causal=is_causal)
    return AttentionPlan(positions, positions, (span,))


def check_states(compiled: HrmTextNet, plain: HrmTextNet, plan: AttentionPlan) -> None:
    """Check that both networks compute the same states of one row."""
    ids = torch.arange(len(plan.positions))
    states = compiled.hidden(ids, plan, None)
    assert torch.allclose(states, plain.hidden(ids, plan, None), atol=1e-5)


def test_two_compilations_serve_all_layers_and_widths(tmp_path: Path) -> None:
    """Rows of any width share two compilations; a single token may have two of its own."""
    write_tiny(tmp_path)
    plain = HrmTextNet(hrm_text.load_model(tmp_path), CPU)
    compiled = HrmTextNet(hrm_text.load_model(tmp_path), CPU)
    graphs: list[fx.GraphModule] = []

    def count_and_run(graph: fx.GraphModule, _: object) -> fx.GraphModule:
        graphs.append(graph)
        return graph

    # Compilations that other tests left in the cache would not be made, and counted, again.
    torch.compiler.reset()
    compiled.model.compile_layers(count_and_run)
    with torch.inference_mode():
        for num_tokens in (5, 17, 2, 64):
            check_states(compiled, plain, plan_of(num_tokens, is_causal=True))
        assert len(graphs) == 2

        check_states(compiled, plain, plan_of(1, is_causal=False))
    assert len(graphs) <= 4


def test_layers_that_do_not_compile_run_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure of the compiler is logged, and the model is served with plain layers."""
    write_tiny(tmp_path)
    net = HrmTextNet(hrm_text.load_model(tmp_path), CPU)

    def without_compiler(*_: object, **__: object) -> object:
        def fail(*_: object) -> object:
            raise RuntimeError("Failed to find C compiler")

        return fail

    plain = net.model.halves
    monkeypatch.setattr(torch, "compile", without_compiler)

    hrm_text.compile_net(net, "tiny")

    assert net.model.halves == plain
    [fields] = fields_of(caplog, "layers not compiled")
    assert fields == {"model": "tiny", "error": "Failed to find C compiler"}

    runner = hrm_text.load(RunnerOptions(path=str(tmp_path), max_batch=2))
    task = Generate(PROMPTS[0], Sampling(max_tokens=3, seed=0))
    [answer] = generate_all(runner, [task])
    assert len(answer) == 3
