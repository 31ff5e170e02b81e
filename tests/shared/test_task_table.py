"""The table of tasks: what a task takes and makes agrees with its modality."""

from shared.tasks.pictures import Pictures
from shared.tasks.sound import Spoken
from shared.tasks.specs import Modality
from shared.tasks.task_table import TASKS

_OF_INPUTS: dict[str, Modality] = {"image": "image", "video": "video", "audio": "audio"}
"""The modality of a task that has an artifact of this name among its inputs."""


def test_d76_the_modality_is_that_of_what_a_task_takes_or_makes() -> None:
    """A row that leaves it out would have its models served by the workers of text."""
    expected: dict[str, Modality] = {}
    for name, info in TASKS.items():
        for field in info.spec.__struct_fields__:
            if field in _OF_INPUTS:
                expected[name] = _OF_INPUTS[field]
        if info.result is Pictures:
            expected[name] = "image"
        if info.result is Spoken:
            expected[name] = "audio"
    expected["time-series-forecasting"] = "series"

    others = {name: info.modality for name, info in TASKS.items() if info.modality != "text"}
    assert others == expected
    assert len(expected) >= 15
