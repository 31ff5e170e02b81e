"""Text models learn from generated problems, and are written so that the fleet serves them."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from scripts.train import evaluate_text, text_batches, train_text
from scripts.train.act_nets import ActNet, ActSizes
from scripts.train.calibrate_domain import curve_of
from scripts.train.calibrate_domain import main as calibrate
from scripts.train.evaluate_text import evaluate, solved_by
from scripts.train.loop import Length, learning_rate
from scripts.train.problems.other import REFUSAL
from scripts.train.problems.problem import Problem, is_held_out
from scripts.train.problems.streams import MAKERS, OTHER, held_out, training_stream
from scripts.train.text_batches import Encoder, collate, train_tokenizer
from scripts.train.text_recipe import RECIPES, TextRecipe, network, read_recipe
from scripts.train.train_text import TextLearner, main, texts
from worker.llm import LLM, SamplingParams
from worker.models.act_bundle import load_act_bundle

NETS = ("hrm-text", "causal", "actv1")


def tiny(net: str, domain: str = "maths") -> TextRecipe:
    recipe = read_recipe(RECIPES / "hrm-text-math.yaml")
    return replace(
        recipe,
        net=net,  # type: ignore[arg-type]
        domain=domain,  # type: ignore[arg-type]
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        head_dim=16,
        batch_size=8,
    )


def learner_of(recipe: TextRecipe, out: Path) -> TextLearner:
    problems = training_stream(recipe.domain, 0)
    tokenizer = train_tokenizer(texts(problems, 200), recipe)
    return TextLearner(recipe, out, tokenizer, bf16=False)


@pytest.mark.parametrize("net", NETS)
def test_the_loss_falls(net: str, tmp_path: Path) -> None:
    learner = learner_of(tiny(net), tmp_path)
    losses = [learner.train_step(3e-3)["loss"] for _ in range(60)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert learner.step == 60


@pytest.mark.parametrize(
    ("net", "domain"), [("hrm-text", "maths"), ("causal", "code"), ("actv1", "maths")]
)
def test_a_prompt_in_training_is_the_prompt_when_it_is_served(
    net: str, domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's tokens of a prompt are those of training, and its scores the network's own.

    The network learns that much in no time: it has seen one problem only.
    """
    recipe = tiny(net, domain)
    problem = Problem("one", "1 + 1", "What is 1 + 1?", "1 + 1 = 2\n\\boxed{2}", "2")
    monkeypatch.setattr(text_batches, "training_stream", lambda *_: itertools.repeat(problem))
    monkeypatch.setattr(train_text, "evaluate", lambda *_: {})
    learner = learner_of(recipe, tmp_path)
    for _ in range(150):
        learner.train_step(3e-3)
    learner.measure(0.0, is_last=True)

    prompting = json.loads((tmp_path / "prompting.json").read_text())
    template = prompting["coding" if domain == "code" else "math"]
    with LLM(tmp_path, threads=1) as llm:
        prompt = template.replace("{problem}", problem.prompt)
        [output] = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=40))
        [score] = llm.score(prompt, problem.response)
    assert output.outputs[0].text == problem.response
    assert output.outputs[0].finish_reason == "stop"
    assert score.is_greedy


def test_a_brain_is_that_of_the_equations(tmp_path: Path) -> None:
    """The worker's own network has the logits of the one in training."""
    torch.manual_seed(0)
    sizes = ActSizes(40, 32, 48, num_heads=2, layers=2, h_cycles=2, l_cycles=3, max_positions=16)
    net = ActNet(sizes)
    net.save_pretrained(tmp_path)
    served = load_act_bundle(tmp_path).model
    ids = torch.randint(40, (2, 9))
    with torch.no_grad():
        logits = net(ids, ids).logits
        output = served.forward_segment(ids, torch.tensor([9, 9]), served.initial_carry(2, 9))
    torch.testing.assert_close(served.logits(output.hidden), logits, atol=1e-4, rtol=1e-4)


def test_digits_are_tokens_and_the_prompt_is_not_learnt() -> None:
    recipe = tiny("hrm-text")
    tokenizer = train_tokenizer(texts(training_stream("maths", 0), 500), recipe)
    assert len(tokenizer) == recipe.vocab_size
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("4711")["input_ids"])
    assert pieces == ["4", "7", "1", "1"]
    text = "Zoë pays 3 € for {x}\n\n    tabs\t"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    problem = Problem("one", "k", "1 + 1", "2", "2")
    [(ids, num_prompt)] = Encoder(tokenizer, recipe).encode([problem])
    assert tokenizer.decode(ids) == "<|im_start|><|object_ref_start|>1 + 1<|im_end|>2<|box_end|>"
    batch = collate([(ids, num_prompt), (ids[:-1], num_prompt)], pad=0)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["labels"][0, num_prompt : len(ids)].tolist() == ids[num_prompt:]
    assert (batch["labels"][0, :num_prompt] == -100).all()
    assert (batch["labels"][1, len(ids) - 1 :] == -100).all()
    assert batch["token_type_ids"].sum(1).tolist() == [num_prompt] * 2


@pytest.mark.parametrize("name", ["math", "code"])
def test_a_baseline_has_the_size_the_problems_and_the_steps_of_its_hrm(name: str) -> None:
    hrm = read_recipe(RECIPES / f"hrm-text-{name}.yaml")
    baseline = read_recipe(RECIPES / f"baseline-{name}.yaml")
    tokenizer = train_tokenizer(texts(training_stream(hrm.domain, 0), 50), hrm)
    sizes = []
    for recipe in (hrm, baseline):
        net = network(recipe, tokenizer)
        sizes.append(sum(parameter.numel() for parameter in net.parameters()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert sizes[0] <= 5_000_000
    same = ("domain", "steps", "batch_size", "vocab_size")
    assert [getattr(hrm, one) for one in same] == [getattr(baseline, one) for one in same]


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text((RECIPES / "hrm-text-math.yaml").read_text() + "dropout: 0.1\n")
    with pytest.raises(msgspec.ValidationError, match=r"mine\.yaml: a recipe has no dropout"):
        read_recipe(file)


@pytest.mark.parametrize("domain", MAKERS)
def test_no_training_seed_reaches_what_is_held_out(domain: str) -> None:
    """Problems that one domain declines are answered by the refusal, held out there or not."""
    for seed in (0, 1):
        for problem in itertools.islice(training_stream(domain, seed), 3000):
            assert not is_held_out(problem.key)
    for kind in MAKERS[domain]:
        problems = held_out(domain, kind, 20)
        assert len({problem.key for problem in problems}) == 20
        assert all(is_held_out(problem.key) for problem in problems)
        assert problems == held_out(domain, kind, 20)
    if OTHER in MAKERS[domain]:
        assert {problem.response for problem in held_out(domain, OTHER, 20)} == {REFUSAL}


def test_a_kind_may_have_too_few_held_out_problems() -> None:
    with pytest.raises(ValueError, match="short_product: 1000 held-out problems asked for"):
        held_out("short arithmetic", "short_product", 1000)


def test_what_is_right() -> None:
    maths = held_out("maths", "equation", 2)
    code = held_out("code", "code", 2)
    [other] = held_out("maths", OTHER, 1)
    problems = [*maths, *code, other, other]
    responses = [problem.response for problem in problems]
    assert solved_by(problems, responses) == [True] * 6
    wrong = [
        "\\boxed{nothing}",
        "",
        "```python\ndef f(x):\n    return None\n```",
        "no code",
        "",
        "2",
    ]
    assert solved_by(problems, wrong) == [False] * 6


def test_the_learning_rate_rises_and_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, step / 1000, 2.0, warmup_steps=100) for step in range(1001)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates[1000] == pytest.approx(0.2)
    assert Length(steps=10).progress(5, minutes=99) == 0.5
    assert Length(minutes=10).progress(5, minutes=20) == 1


def test_the_curve_of_a_score() -> None:
    """One of ten problems has a higher score than half of the others."""
    own = [0.0] * 5 + [0.1] * 4 + [0.5]
    curve = curve_of(own, [0.4, 0.6, 0.1, 0.0])
    shares = {point.mistakes: (point.threshold, point.told) for point in curve.points}
    assert shares == {0.0: (0.5, 0.25), 0.1: (0.1, 0.5)}
    assert curve.area == pytest.approx((9 + 10 + 5 + 2 + 2.5) / 40)


def test_a_command_trains_stops_goes_on_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing to a directory with a history, a plot and a calibrated refusal."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "tiny.yaml").write_bytes(msgspec.yaml.encode(tiny("hrm-text")))
    monkeypatch.setattr(train_text, "RECIPES", recipes)
    monkeypatch.setattr(train_text, "_TOKENIZER_PROBLEMS", 200)
    monkeypatch.setattr(train_text, "_MEASURED_EACH_AT_THE_END", 2)
    monkeypatch.setattr(evaluate_text, "MAX_TOKENS", 8)
    out = tmp_path / "models" / "mine"

    def run(*more: str) -> str:
        folders = ["--out", str(out), "--cache", str(tmp_path / "cache")]
        monkeypatch.setattr(sys, "argv", ["train", "tiny", *folders, "--threads", "1", *more])
        main()
        return capsys.readouterr().out

    run("--steps", "100")
    assert "goes on from step 100" in run("--steps", "101", "--resume")
    history = tmp_path / "cache" / "mine" / "history.jsonl"
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 100, 101]
    assert set(MAKERS["maths"]) <= lines[-1].keys()
    assert history.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert evaluate(out, "maths", 1, kinds=["sum"])["sum"].total == 1

    monkeypatch.setattr(sys, "argv", ["calibrate", str(out), "--count", "22"])
    calibrate()
    assert "area under the curve" in capsys.readouterr().out
    prompting = json.loads((out / "prompting.json").read_text())
    assert prompting["refusal"] == REFUSAL
    assert 0 <= prompting["most_refusal"] <= 1
    assert torch.get_num_threads() == 1
