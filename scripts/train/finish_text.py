"""Make a trained text model ready to ship: small weights, held-out figures, a card.

    python -m scripts.train.finish_text models/hrm-text-math --trained "3,600 steps, ..."

The weights are rounded to bfloat16, which halves the file; they are computed with in float32. Then
the model is measured on held-out problems (`held_out.json`), greedily and with the sampling that
`/solve/...` uses by default, and where it can decline problems, that is calibrated (`domain.json`).
`README.md` tells all of it. The figures are of the rounded weights.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from scripts.train.calibrate_domain import Curve, calibrate
from scripts.train.evaluate_text import evaluate
from scripts.train.problems.streams import MAKERS, OTHER, WEIGHTS, held_out
from shared.figures import Share

_TEMPERATURE = 0.7
"""The default of `/solve/...`, where a model declares none."""
_NETS = {
    "hrm-text": "An HRM-Text (`model_type: hrm_text`)",
    "causal": "A causal transformer (Llama's layout), the baseline beside `hrm-text`",
    "actv1": "An ACTv1 brain with causal attention, trained to predict the next token",
}
_DOMAINS = {
    "maths": (
        "linear equations, integer arithmetic up to four digits, fractions, percentages, derivatives "
        "of polynomials and short word problems, with steps and a boxed answer"
    ),
    "code": (
        "small Python functions that are described in plain words: one sentence, then the function "
        "in a fenced block"
    ),
    "short arithmetic": "sums, differences and products of small numbers, answered at once",
}
_LIMITS = {
    "maths": (
        "It writes numbers digit by digit and knows only problems of these kinds: larger numbers, "
        "two unknowns, powers of the unknown, geometry or proofs are outside. Held-out word problems "
        "have new numbers and names in known templates; another story is often misread. Steps may "
        "be wrong where the answer is, and it is no calculator to rely on."
    ),
    "code": (
        "It composes known parts (filters, maps, reductions, formulas, about a hundred well-known "
        "functions). Held-out combinations of these are new to it, other tasks are outside. Run its "
        "code only where you would run a stranger's."
    ),
    "short arithmetic": "Numbers up to 99, factors up to 12 with up to 99; nothing else.",
}


def round_weights(path: Path) -> int:
    """Round the weights of a directory to bfloat16. Return the bytes of the file."""
    import torch

    [file] = path.glob("*.safetensors")
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    save_file(rounded, file, metadata={"format": "pt"})
    config = path / "config.json"
    if config.exists():
        values = json.loads(config.read_text())
        config.write_text(json.dumps(values | {"dtype": "bfloat16"}, indent=2) + "\n")
    return file.stat().st_size


def card(
    path: Path,
    *,
    num_bytes: int,
    trained: str,
    greedy: dict[str, Share],
    sampled: dict[str, Share],
    temperature: float,
    curve: Curve | None,
) -> str:
    """Return the card of a model in Markdown."""
    training = json.loads((path / "training.json").read_text())
    domain = training["domain"]
    weights = WEIGHTS[domain]
    total = sum(weights.values())
    lines = [
        f"# {path.name}",
        "",
        f"{_NETS[training['net']]} for {_DOMAINS[domain]}.",
        f"Hidden {training['hidden_size']}, {num_bytes / 1e6:.1f} MB in bfloat16.",
        "",
        "## Held-out problems",
        "",
        "No training seed reaches them: a hash of the problem, without its wording, keeps one in 20 "
        "out. Shares that were right, with Wilson's interval of 95 %; greedy, and with temperature "
        f"{temperature}, the default of `/solve/...` for this model.",
        "",
        "| kind | of training | greedy | sampled | example |",
        "|---|---|---|---|---|",
    ]
    for kind, share in greedy.items():
        [example] = held_out(domain, kind, 1, seed=2)
        prompt = example.prompt.replace("|", "\\|").replace("\n", " ")
        lines.append(
            f"| {kind} | {weights[kind] / total:.0%} | {_shown(share)} | {_shown(sampled[kind])} "
            f"| {prompt} |"
        )
    lines += ["", f"`python -m scripts.train.evaluate_text models/{path.name}` measures again."]
    if curve is not None:
        lines += [
            "",
            "## What is outside",
            "",
            "Where it does not know the kind of problem it answers `This is outside what I know.`, "
            "and `/solve/...` says `in_domain: false` by its probability of that text. Held-out "
            f"problems of its domain ({curve.problems:,}) and others ({curve.others:,}): the area "
            f"under the curve is {curve.area:.4f}.",
            "",
            "| of its domain declined by mistake | of the others told | probability above |",
            "|---|---|---|",
        ]
        for point in curve.points:
            lines.append(f"| {point.mistakes:.2%} | {point.told:.2%} | {point.threshold:.3g} |")
    lines += ["", _LIMITS[domain], "", "## How it was made", ""]
    lines.append(
        f"`python -m scripts.train.train_text {path.name} --out models/{path.name}`: {trained}. "
        f"Problems are generated (`scripts/train/problems`); batch {training['batch_size']}, AdamW, "
        f"peak learning rate {training['lr']} with a cosine, weights averaged with "
        f"{training['ema_rate']}; {training['step']:,} steps in {training['minutes']:.0f} minutes."
    )
    return "\n".join(lines) + "\n"


def _shown(share: Share) -> str:
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="directory of a model")
    parser.add_argument("--count", type=int, default=500, help="problems of each kind")
    parser.add_argument("--trained", default="on CPU cores", help="where, and how, for the card")
    args = parser.parse_args()
    path = args.path
    domain = json.loads((path / "training.json").read_text())["domain"]
    num_bytes = round_weights(path)
    curve = None
    if OTHER in MAKERS[domain]:
        curve = calibrate(path, 2000, most_mistakes=0.001)
    greedy = evaluate(path, domain, args.count)
    prompting = json.loads((path / "prompting.json").read_text())
    temperature = prompting.get("temperature", _TEMPERATURE)
    sampled = evaluate(path, domain, args.count, temperature=temperature)
    values = {
        "greedy": {kind: asdict(share) for kind, share in greedy.items()},
        "sampled": {kind: asdict(share) for kind, share in sampled.items()},
    }
    (path / "held_out.json").write_text(json.dumps(values, indent=2) + "\n")
    text = card(
        path,
        num_bytes=num_bytes,
        trained=args.trained,
        greedy=greedy,
        sampled=sampled,
        temperature=temperature,
        curve=curve,
    )
    (path / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
