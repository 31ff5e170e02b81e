"""Collections of garbage, in a process of its own."""

import subprocess
import sys

_PROGRAM = """
import gc
import weakref

from shared import garbage


class Node:
    def __init__(self):
        self.itself = self


foreign = Node()
was_collected = weakref.ref(foreign)
gc.freeze()
del foreign
garbage.collect()
print("frozen by others:", was_collected() is None)

own = Node()
was_collected = weakref.ref(own)
garbage.settle()
del own
gc.collect()
print("settled:", was_collected() is None)
garbage.collect()
print("settled, and collected:", was_collected() is None)
print("is frozen again:", gc.get_freeze_count() > 1000)
"""


def test_collections_take_in_what_settling_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        "frozen by others: False",
        "settled: False",
        "settled, and collected: True",
        "is frozen again: True",
    ]
