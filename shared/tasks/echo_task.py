"""The task of the `echo-task` runner, which needs no model.

It takes as long as its options say, and reports its progress.
"""

from shared.tasks.results import OtherResult
from shared.tasks.specs import OtherTask


class EchoTask(OtherTask, frozen=True, omit_defaults=True, tag="echo_task"):
    """Repeat a text once a step, in `steps` steps of `step_ms` milliseconds each."""

    text: str
    steps: int = 1
    step_ms: int = 0


class EchoedTask(OtherResult, frozen=True, tag="echo_task"):
    """The result. The text, once for each step, is in a file: the answer's only artifact."""

    steps: int
