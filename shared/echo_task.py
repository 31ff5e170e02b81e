"""The task of the model-free `echo-task` runner: it takes as long as it is told, and says how far
it has come."""

from shared.results import OtherResult
from shared.tasks import OtherTask


class EchoTask(OtherTask, frozen=True, omit_defaults=True, tag="echo_task"):
    """Repeat a text once a step, in `steps` steps of `step_ms` milliseconds each."""

    text: str
    steps: int = 1
    step_ms: int = 0


class EchoedTask(OtherResult, frozen=True, tag="echo_task"):
    """The text once for each step is a file, the only artifact of the answer."""

    steps: int
