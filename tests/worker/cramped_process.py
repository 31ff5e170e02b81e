"""`python -m tests.worker.cramped_process DIRECTORY MIB`: decodes, limits its own memory, and
decodes again.

Prints as JSON whether it said the same, and what the engine warned of.
"""

import json
import logging
import resource
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scripts.train_sample import byte_tokenizer
from shared.messages import Generate, Sampling
from tests.worker.stepping import generate_all
from worker.registry import load_runner
from worker.runners.base import RunnerOptions

WINDOW = 2048


def write_wide_model(path: Path) -> None:
    """Small weights, large activations: 16 KiB a token in each of three tensors."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=4096,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)


def allow_only(more_mib: int) -> None:
    """No more address space than this process has, and `more_mib`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (more_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Warnings(logging.Handler):
    """Keeps what the engine warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.__dict__["fields"]["error"])


def main(path: Path, more_mib: int) -> None:
    torch.set_num_threads(1)
    write_wide_model(path)
    options = RunnerOptions(
        str(path), max_batch=2, step_tokens=WINDOW, kv_bytes=16 << 20, prefix_cache=False
    )
    runner = load_runner("auto", options)
    prompts = [tuple(20 + at * step % 200 for at in range(WINDOW - 100)) for step in (3, 7)]
    tasks = [Generate(prompt, Sampling(4, seed=0, temperature=0.0)) for prompt in prompts]
    expected = generate_all(runner, tasks)
    allow_only(more_mib)
    warnings = Warnings()
    logging.getLogger("aios.engine").addHandler(warnings)
    same = generate_all(runner, tasks) == expected
    print(json.dumps({"same": same, "refusals": warnings.texts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
