"""The table of tasks: what a task takes and makes agrees with its modality."""

from typing import Any

from shared.tasks.meshes import Mesh
from shared.tasks.pictures import Pictures
from shared.tasks.sound import Spoken
from shared.tasks.specs import Modality
from shared.tasks.task_table import TASKS
from shared.tasks.videos import Video

_OF_INPUTS: dict[str, Modality] = {"image": "image", "video": "video", "audio": "audio"}
"""The modality of a task that has an artifact of this name among its inputs."""

_OF_RESULTS: dict[type[Any], Modality] = {
    Pictures: "image",
    Spoken: "audio",
    Video: "video",
    Mesh: "3d",
}


def test_d76_the_modality_is_that_of_what_a_task_takes_or_makes() -> None:
    """A row that leaves it out would have its models served by the workers of text."""
    expected: dict[str, Modality] = {}
    for name, info in TASKS.items():
        for field in info.spec.__struct_fields__:
            if field in _OF_INPUTS:
                expected[name] = _OF_INPUTS[field]
        if info.result in _OF_RESULTS:
            expected[name] = _OF_RESULTS[info.result]
    expected["time-series-forecasting"] = "series"

    others = {name: info.modality for name, info in TASKS.items() if info.modality != "text"}
    assert others == expected
    assert len(expected) >= 15
