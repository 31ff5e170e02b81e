"""Compiled layers of HRM-Text say what plain ones say, and all layers and widths share the
compilations.

Only the tracing is tested here, not what the compiler makes of it; on a GPU `test_gpu_decode.py`
has it in.
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


def test_two_compilations_serve_all_layers_and_widths(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    plain, compiled = (HrmTextNet(hrm_text.load_model(tmp_path), CPU) for _ in range(2))
    graphs: list[fx.GraphModule] = []

    def count_and_run(graph: fx.GraphModule, _: object) -> fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled.model.compile_layers(count_and_run)
    with torch.inference_mode():
        for count in (5, 17, 2, 64):
            places = torch.arange(count)
            plan = AttentionPlan(
                places, places, (Span(0, count, places[None], has_fresh=True, is_causal=True),)
            )
            assert torch.allclose(
                compiled.hidden(places, plan, None), plain.hidden(places, plan, None), atol=1e-5
            )
        assert len(graphs) == 2
        one = torch.arange(1)
        plan = AttentionPlan(one, one, (Span(0, 1, one[None], has_fresh=True),))
        assert torch.allclose(
            compiled.hidden(one, plan, None), plain.hidden(one, plan, None), atol=1e-5
        )
    assert len(graphs) <= 4, "a single token may have compilations of its own"


def test_layers_that_do_not_compile_run_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
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
    [said] = fields_of(caplog, "layers not compiled")
    assert said == {"model": "tiny", "error": "Failed to find C compiler"}
    runner = hrm_text.load(RunnerOptions(path=str(tmp_path), max_batch=2))
    task = Generate(PROMPTS[0], Sampling(max_tokens=3, seed=0))
    assert len(generate_all(runner, [task])[0]) == 3
