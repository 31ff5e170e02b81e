"""Compare our greedy tokens on a device with a forward pass of transformers over the same tokens.

Half precision rounds, so two right computations disagree where two tokens nearly tie. For
comparison the agreement of transformers in half precision with itself in full precision is printed
too.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HrmTextConfig, HrmTextForCausalLM

from scripts.train.special_tokens import byte_tokenizer
from shared.messages import Generate, Sampling
from worker.engine.engine import Engine
from worker.engine.request import Emission, SequenceWork
from worker.engine.runner import RunnerOptions
from worker.models.hrm_text import HrmTextShape
from worker.runners import hrm_text
from worker.runners.paged import PagedRunner

PROMPT_LENGTHS = (5, 60, 254, 300)


def print_agreement(
    directory: Path, shape: HrmTextShape, device: torch.device, num_tokens: int
) -> None:
    """Generate `num_tokens` tokens behind prompts of several lengths, and print the agreement.

    It is the share of positions at which transformers chooses the same token. The model is written
    to `directory`.
    """
    net = write_model(directory, shape)
    half = "bfloat16" if device.type == "cuda" else "float32"
    options = RunnerOptions(
        str(directory),
        device=str(device),
        dtype=half,
        page_size=256,
        max_batch=4,
        context_window=512,
        kv_bytes=2**32,
    )
    runner = hrm_text.load(options)
    name = getattr(runner.kernel, "__name__", "none")
    print(f"  kernel over pages: {name}, graphs: {runner.has_graphs}, {half}")

    generator = torch.Generator().manual_seed(0)
    prompts = []
    for length in PROMPT_LENGTHS:
        ids = torch.randint(4, 200, (length,), generator=generator)
        prompts.append(tuple(ids.tolist()))
    answers = generate(runner, prompts, num_tokens)
    ours = torch.cat([torch.tensor(answer) for answer in answers])
    # Full precision comes first, as `to` converts the weights of the network in place.
    exact = chosen_by(net.to(device), prompts, answers)
    rounded = chosen_by(net.to(getattr(torch, half)), prompts, answers)

    print(f"  {len(ours)} tokens: ours are transformers' in {share(ours, rounded):.1%}")
    print(
        f"  of full precision: ours {share(ours, exact):.1%}, transformers' "
        f"{share(rounded, exact):.1%}",
        flush=True,
    )


def write_model(directory: Path, shape: HrmTextShape) -> Any:
    """Write a network of random weights with its tokenizer, and return the network."""
    torch.manual_seed(0)
    config = HrmTextConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        head_dim=shape.head_dim,
        H_cycles=shape.h_cycles,
        L_cycles=shape.l_cycles,
        max_position_embeddings=shape.max_positions,
        initializer_range=1.0 / shape.embedding_scale,
        embedding_scale=shape.embedding_scale,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    net = HrmTextForCausalLM(config).eval()
    net.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return net


def generate(
    runner: PagedRunner, prompts: list[tuple[int, ...]], num_tokens: int
) -> list[list[int]]:
    """Return the token ids of our engine's greedy answers."""
    emissions: list[Emission] = []
    engine = Engine(runner, emissions.extend)
    sampling = Sampling(max_tokens=num_tokens, seed=0, temperature=0.0)
    for number, prompt in enumerate(prompts):
        encoded = runner.encode(Generate(prompt, sampling))
        engine.submit(SequenceWork(str(number), encoded, sampling))
    while engine.has_work:
        engine.step()

    answers: list[list[int]] = [[] for _ in prompts]
    for emission in emissions:
        answers[int(emission.key)] += emission.ids
    return answers


@torch.inference_mode()
def chosen_by(net: Any, prompts: list[tuple[int, ...]], answers: list[list[int]]) -> Tensor:
    """Return the tokens that transformers chooses at each position of the answers, int64 [tokens].

    The tokens before each position are those of the prompt and the answer.
    """
    tokens = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=net.device)
        types = torch.tensor([[1] * len(prompt) + [0] * len(answer)], device=net.device)
        logits = net(input_ids=ids, token_type_ids=types, use_cache=False).logits[0]
        # The logits of a position predict the next token.
        tokens.append(logits[len(prompt) - 1 : -1].argmax(-1).cpu())
    return torch.cat(tokens)


def share(one: Tensor, other: Tensor) -> float:
    """Return the share of positions at which two rows of tokens are equal."""
    return float((one == other).double().mean())
