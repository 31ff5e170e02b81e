"""Train a text model on generated problems, and write it as a Hugging Face directory.

    python -m scripts.train.train_text hrm-text-math --out models/hrm-text-math

The name is that of a recipe in `scripts/train/recipes`. An HRM-Text is a PrefixLM: attention is
bidirectional on the prompt and causal on the response. The loss is on the response only. The saved
weights are an exponential moving average. The state for `--resume` and the history of the run are
kept in the directory of `--cache`.
"""

import argparse
import copy
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from scripts.train.evaluate_text import evaluate
from scripts.train.loop import Figure, Length, Schedule, TrainingLoop, update_average
from scripts.train.problems.problem import Problem
from scripts.train.problems.streams import training_stream
from scripts.train.text_batches import CAUSAL_END_OF_PROMPT, batch_loader, train_tokenizer
from scripts.train.text_recipe import RECIPES, TextRecipe, network, read_recipe

_TOKENIZER_PROBLEMS = 40_000
_MEASURED_EACH = 40
_MEASURED_EACH_AT_THE_END = 100


class TextLearner:
    """A text model in training, and its average."""

    def __init__(
        self,
        recipe: TextRecipe,
        out: Path,
        tokenizer: PreTrainedTokenizerFast,
        *,
        seed: int = 0,
        device: str = "cpu",
        bf16: bool = False,
        compiles: bool = False,
        workers: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self._step = 0
        self._recipe = recipe
        self._out = out
        self._tokenizer = tokenizer
        self._device = torch.device(device)
        self._bf16 = bf16
        self._seed = seed
        self._workers = workers
        net: Any = network(recipe, tokenizer)
        self._net = net.to(self._device)
        self._average: Any = copy.deepcopy(self._net).requires_grad_(False)
        if self._device.type == "cpu" and isinstance(net, PreTrainedModel):
            # The backward of torch's fused attention takes several times as long in bfloat16.
            self._net.set_attn_implementation("eager")
        if compiles:
            _compile_layers(self._net)
        self._optimizer = torch.optim.AdamW(
            self._net.parameters(), betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
        )
        self._batches = self._batches_from(0)

    def _batches_from(self, step: int) -> Iterator[dict[str, torch.Tensor]]:
        """A run that goes on sees other problems than those with which it began."""
        return batch_loader(
            self._recipe,
            self._tokenizer,
            self._seed * 1_000_003 + step,
            workers=self._workers,
            pinned=self._device.type == "cuda",
        )

    @property
    def step(self) -> int:
        return self._step

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._net.parameters())

    def train_step(self, lr: float) -> Mapping[str, Figure]:
        batch = {}
        for name, value in next(self._batches).items():
            batch[name] = value.to(self._device, non_blocking=True)
        if self._recipe.net != "hrm-text":
            del batch["token_type_ids"]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            loss = self._net(**batch, use_cache=False).loss

        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
        self._optimizer.step()
        self._step += 1
        update_average(self._average, self._net, step=self._step, rate=self._recipe.ema_rate)
        return {"loss": loss.detach(), "tokens": float(batch["input_ids"].numel())}

    def measure(self, minutes: float, *, is_last: bool) -> Mapping[str, float]:
        self._write(minutes)
        count = _MEASURED_EACH_AT_THE_END if is_last else _MEASURED_EACH
        shares = {}
        for kind, score in evaluate(self._out, self._recipe.domain, count).items():
            shares[kind] = score.value
        return shares

    def _write(self, minutes: float) -> None:
        """Write the average in float32, its tokenizer, its recipe, and how it is to be asked."""
        tokenizer = self._tokenizer
        model = copy.deepcopy(self._average).to("cpu")
        if isinstance(model, PreTrainedModel):
            model.generation_config = GenerationConfig(
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        model.save_pretrained(self._out)
        tokenizer.save_pretrained(self._out)
        template = "{problem}"
        if self._recipe.net != "hrm-text":
            template += CAUSAL_END_OF_PROMPT
        route = "coding" if self._recipe.domain == "code" else "math"
        prompting: dict[str, Any] = {route: template}
        prompting |= {"top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
        if route == "math":
            # A step has one right continuation, and after a wrong one there is no way back.
            prompting["temperature"] = 0.3
        (self._out / "prompting.json").write_text(json.dumps(prompting, indent=2) + "\n")
        training = asdict(self._recipe) | {"step": self._step, "minutes": round(minutes, 1)}
        (self._out / "training.json").write_text(json.dumps(training, indent=2) + "\n")

    def state(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "net": self._net.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        try:
            self._net.load_state_dict(state["net"])
        except RuntimeError as error:
            raise ValueError(f"the saved network is another: {error}") from error
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._batches = self._batches_from(self._step)


def _compile_layers(net: torch.nn.Module) -> None:
    """Compile each block once, for batches of any width."""
    for module in net.modules():
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                layer.compile(dynamic=True)


def texts(problems: Iterator[Problem], count: int) -> Iterator[str]:
    """Yield the prompts and the responses of some problems."""
    for problem in itertools.islice(problems, count):
        yield problem.prompt
        yield problem.response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=sorted(file.stem for file in RECIPES.glob("*.yaml")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--minutes", type=float, help="end by then, instead of the recipe's steps")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw problems, for a fast device"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the saved state")
    parser.add_argument("--cache", type=Path, default=Path(".train"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, where fast")
    parser.add_argument(
        "--compile", action="store_true", help="a minute first, then 1.6 times as fast on a CPU"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-minutes", type=float, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()

    recipe = read_recipe(RECIPES / f"{args.recipe}.yaml")
    problems = training_stream(recipe.domain, args.seed)
    if args.resume and (args.out / "tokenizer.json").exists():
        # Its tokens are those of the network, whatever the problems are made of now.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    else:
        tokenizer = train_tokenizer(texts(problems, _TOKENIZER_PROBLEMS), recipe)
    learner = TextLearner(
        recipe,
        args.out,
        tokenizer,
        seed=args.seed,
        device=args.device,
        bf16=args.bf16,
        compiles=args.compile,
        workers=args.workers,
    )
    print(f"{learner.num_parameters():,} parameters, {len(tokenizer):,} tokens", flush=True)
    length = Length(steps=args.steps or recipe.steps)
    if args.minutes:
        length = Length(steps=args.steps, minutes=args.minutes)
    schedule = Schedule(
        length=length,
        peak_lr=recipe.lr,
        folder=args.cache / args.out.name,
        measure_minutes=args.measure_minutes,
    )
    TrainingLoop(learner, schedule, resume=args.resume).run()


if __name__ == "__main__":
    main()
