"""What a task will about cost, before a tokenizer has seen it: by that tenants share and waits are foretold."""

from shared.messages import Chat, Classify, Detokenize, Embed, Generate, Prompt, Score, Task, Tokenize

_CHARACTERS_A_TOKEN = 4
_PUZZLE_COST = 256
_NO_STEP_COST = 1


def cost_of(task: Task) -> int:
    """About how many tokens a task will take: what it may say, and its text by rule of thumb."""
    if isinstance(task, Generate):
        return _length(task.prompt) + task.sampling.max_tokens * task.sampling.n
    if isinstance(task, Score):
        return _length(task.context) + sum(map(_length, task.continuations))
    if isinstance(task, Embed | Classify):
        return _length(task.text)
    if isinstance(task, Tokenize | Detokenize):
        return _NO_STEP_COST
    return _PUZZLE_COST


def _length(text: Prompt) -> int:
    if isinstance(text, Chat):
        return sum(_length(turn.content) for turn in text.messages)
    return len(text) // _CHARACTERS_A_TOKEN + 1 if isinstance(text, str) else len(text)
