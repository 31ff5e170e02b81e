"""A network that is only a state dict: the translator of cn2en, which reads and writes by two GRUs.

The example of a plugin for weights that no other runner knows. Its directory has the tensors in
`model.safetensors`, and the words of both languages by number in `source.json` and `target.json`.
"""

import json
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import FleetError, InvalidRequest
from shared.messages import Task
from shared.tasks.writing import Translate, Written
from worker.engine.runner import RunnerOptions
from worker.engine.task_runner import BatchProgress, Files, TaskOutput, TaskRunnerSpec

_START = 0
_END = 1
_MAX_TOKENS = 100
_WHOLE = frozenset("abcdefghijklmnopqrstuvwxyz'\"")
"""The signs of which words are made. Each other sign is a word."""


class Translator(nn.Module):
    """The network: the last state of a GRU over the source begins that of the target."""

    def __init__(self, num_source: int, num_target: int, hidden: int) -> None:
        super().__init__()
        self.read_embedding = nn.Embedding(num_source, hidden)
        self.read_gru = nn.GRU(hidden, hidden, batch_first=True)
        self.write_embedding = nn.Embedding(num_target, hidden)
        self.write_gru = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, num_target)

    def write(self, source: Tensor, max_tokens: int) -> Tensor:
        """Return the likeliest tokens [B, T] for sources [B, S] of one length."""
        _, state = self.read_gru(self.read_embedding(source))
        last = torch.full((len(source), 1), _START)
        written: list[Tensor] = []
        is_ended = torch.zeros(len(source), dtype=torch.bool)
        while len(written) < max_tokens and not is_ended.all():
            output, state = self.write_gru(self.write_embedding(last).relu(), state)
            last = self.out(output).argmax(dim=-1)
            written.append(last)
            is_ended |= last[:, 0] == _END
        return torch.cat(written, dim=1)


class TranslatorRunner:
    def __init__(self, options: RunnerOptions) -> None:
        path = Path(options.path)
        source = json.loads((path / "source.json").read_text(encoding="utf-8"))
        self._numbers = {word: number for number, word in enumerate(source)}
        self._words: list[str] = json.loads((path / "target.json").read_text(encoding="utf-8"))
        tensors = load_file(path / "model.safetensors")
        hidden = tensors["out.weight"].shape[1]
        self._network = Translator(len(source), len(self._words), hidden).eval()
        self._network.load_state_dict(tensors)
        self.spec = TaskRunnerSpec(
            "cn2en",
            options.name,
            found="cn2en: translation from Chinese to English",
            max_batch=options.max_batch,
            tasks=("translation",),
            trial=Translate("你好", max_tokens=2),
        )

    def read(self, task: Task, files: Files) -> tuple[tuple[int, ...], int]:
        """Return the numbers of the words, and the most words of the answer."""
        if not isinstance(task, Translate):
            raise InvalidRequest("This model only translates.", field="model")
        if task.source not in (None, "zh") or task.target not in (None, "en"):
            raise InvalidRequest("This model translates from zh to en.", field="target")
        numbers = [self._numbers[word] for word in words_of(task.text) if word in self._numbers]
        if not numbers:
            raise InvalidRequest("The text has no word that this model knows.", field="inputs")
        return (*numbers, _END), task.max_tokens or _MAX_TOKENS

    def group_key(self, item: tuple[tuple[int, ...], int]) -> Hashable:
        numbers, max_tokens = item
        return (len(numbers), max_tokens)

    @torch.inference_mode()
    def run(
        self, items: Sequence[tuple[tuple[int, ...], int]], progress: BatchProgress
    ) -> list[TaskOutput | FleetError]:
        source = torch.tensor([numbers for numbers, _ in items])
        _, max_tokens = items[0]
        outputs: list[TaskOutput | FleetError] = []
        for row in self._network.write(source, max_tokens).tolist():
            end = row.index(_END) if _END in row else len(row)
            words = [self._words[token] for token in row[:end]]
            outputs.append(TaskOutput(Written(" ".join(words))))
        return outputs


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    apart = [sign if sign in _WHOLE or sign == " " else f" {sign} " for sign in text.lower()]
    return "".join(apart).split()


def load(options: RunnerOptions) -> TranslatorRunner:
    return TranslatorRunner(options)
