"""Train the sample HRM-Text on generated problems and write it as a Hugging Face directory.

    python -m scripts.train.train_sample --out models/sample-hrm-text --steps 4000

The model is `HrmTextForCausalLM` of transformers, a PrefixLM: attention is bidirectional on the
prompt and causal on the response, and the loss is on the response only. Tokens are bytes. The saved
weights are an exponential moving average in float32.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    HrmTextConfig,
    HrmTextForCausalLM,
    PreTrainedTokenizerFast,
)

from scripts.train.sample_problems import KINDS, Problem, held_out, training_stream

# The special tokens of HRM-Text: padding, begin and end of the question, end of the answer.
PAD = "<|endoftext|>"
BOQ = "<|im_start|>"
EOQ = "<|im_end|>"
EOA = "<|box_end|>"
CONDITION_TOKENS = {
    "direct": "<|object_ref_start|>",
    "cot": "<|object_ref_end|>",
    "noisy": "<|quad_start|>",
    "synth": "<|quad_end|>",
}
TRAINED_CONDITIONS = (("direct",), ("cot",), ("synth", "cot"))
CONTEXT_WINDOW = 512
_SORTED_BATCHES = 8


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without merges: eight special tokens, then the 256 bytes."""
    specials = [PAD, BOQ, EOQ, EOA, *CONDITION_TOKENS.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOQ,
        eos_token=EOA,
        pad_token=PAD,
        additional_special_tokens=[EOQ, *CONDITION_TOKENS.values()],
        model_max_length=CONTEXT_WINDOW,
    )


def sample_config(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> HrmTextConfig:
    """Return the configuration of an HRM-Text with `layers` blocks in each of the H and L stacks.

    The heads have 32 dimensions, so `hidden` must be a multiple of 32. The counts of cycles are
    the published ones, two of H and three of L.
    """
    return HrmTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=CONTEXT_WINDOW,
        initializer_range=hidden**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, problem: Problem, condition: tuple[str, ...]
) -> tuple[list[int], int]:
    """Return the token ids of prompt and response, and the number of those of the prompt.

    The prompt ends with EOQ, the response with EOA.
    """
    conditions = "".join(CONDITION_TOKENS[name] for name in condition)
    question = BOQ + conditions + problem.prompt + EOQ
    prompt = tokenizer(question, add_special_tokens=False)["input_ids"]
    response = tokenizer(problem.response + EOA, add_special_tokens=False)["input_ids"]
    return prompt + response, len(prompt)


def batches(
    tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches as of `collate` without end.

    The problems of eight batches are drawn together and sorted by length, so that a batch has
    little padding. The eight batches are yielded in random order.
    """
    stream = training_stream(seed)
    conditions = itertools.cycle(TRAINED_CONDITIONS)
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        rows = []
        for _ in range(batch_size * _SORTED_BATCHES):
            rows.append(encode(tokenizer, next(stream), next(conditions)))
        rows.sort(key=lambda row: len(row[0]))
        for number in torch.randperm(_SORTED_BATCHES, generator=shuffle).tolist():
            start = number * batch_size
            yield collate(rows[start : start + batch_size], tokenizer.pad_token_id)


def collate(rows: list[tuple[list[int], int]], pad: int) -> dict[str, torch.Tensor]:
    """Return int64 tensors [rows, longest row] of encoded problems, padded on the right.

    `token_type_ids` are 1 on the prompt, else 0. `labels` are -100 on the prompt and the padding,
    and the token ids on the response.
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    types = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (tokens, num_prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        types[row, :num_prompt] = 1
        labels[row, num_prompt : len(tokens)] = ids[row, num_prompt : len(tokens)]
    return {"input_ids": ids, "token_type_ids": types, "labels": labels}


@torch.no_grad()
def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, problems: list[Problem]) -> float:
    """Return the share of problems to which the last line of the greedy response is the answer."""
    by_length: dict[int, list[tuple[list[int], Problem]]] = {}
    for problem in problems:
        ids, num_prompt = encode(tokenizer, problem, ("direct",))
        by_length.setdefault(num_prompt, []).append((ids[:num_prompt], problem))

    # Only prompts of the same length are decoded together, so that none is padded.
    num_right = 0
    for rows in by_length.values():
        prompt = torch.tensor([ids for ids, _ in rows])
        out = model.generate(
            prompt,
            token_type_ids=torch.ones_like(prompt),
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=96,
            do_sample=False,
        )
        for tokens, (_, problem) in zip(out[:, prompt.shape[1] :], rows, strict=True):
            text = str(tokenizer.decode(tokens, skip_special_tokens=True))
            if text.rsplit("\n", 1)[-1] == problem.answer:
                num_right += 1
    return num_right / len(problems)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step.

    It rises linearly for 100 steps, then falls as a cosine to a hundredth of the peak.
    """
    if step < 100:
        return peak * (step + 1) / 100
    progress = (step - 100) / max(1, steps - 100)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(args: argparse.Namespace) -> None:
    """Train a model, and write it with `held_out.json`, its shares of solved held-out problems."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = byte_tokenizer()
    model = HrmTextForCausalLM(sample_config(tokenizer, args.hidden, args.layers))
    average = HrmTextForCausalLM(model.config)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters:,} parameters", flush=True)

    started_s = time.monotonic()
    tokens = 0
    stream = batches(tokenizer, args.batch, args.seed)
    for step, batch in enumerate(itertools.islice(stream, args.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = model(**batch, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # A short average at first, so that the random weights of the start soon leave it.
        _update_average(average, model, keep=min(0.998, step / (step + 10)))

        tokens += batch["input_ids"].numel()
        if step % 50 == 0:
            seconds = time.monotonic() - started_s
            print(
                f"step {step} loss {loss.item():.4f} {tokens / seconds:,.0f} tok/s {seconds:.0f} s",
                flush=True,
            )
        if step and step % args.check_every == 0:
            report(average, tokenizer, count=60)
            save(average, tokenizer, args.out)

    save(average, tokenizer, args.out)
    shares = report(average, tokenizer, count=500)
    results = {"problems_each": 500, "exact": shares}
    (args.out / "held_out.json").write_text(json.dumps(results, indent=2) + "\n")


@torch.no_grad()
def _update_average(average: torch.nn.Module, model: torch.nn.Module, keep: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)


def report(
    model: HrmTextForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int
) -> dict[str, float]:
    """Print and return the share of held-out problems solved of each kind, out of `count`."""
    model.eval()
    shares = {}
    texts = {}
    for kind in KINDS:
        shares[kind] = accuracy(model, tokenizer, held_out(kind, count))
        texts[kind] = f"{shares[kind]:.3f}"
    print("held out, exact:", texts, flush=True)
    return shares


def save(model: HrmTextForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the weights, configuration, tokenizer and greedy generation defaults to `out`."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument(
        "--layers", type=int, default=1, help="blocks in each of the H and L stacks"
    )
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check-every", type=int, default=500)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
