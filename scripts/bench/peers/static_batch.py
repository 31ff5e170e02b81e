"""Generate with `transformers` in a process of its own: static batches, without a server.

`python -m scripts.bench.peers.static_batch PATH DTYPE` prints a line when it is ready, reads the
loads as JSON from stdin (warm-up, prompts, tokens of each), and prints their tokens per second and
the memory of the process. As many prompts as the warm-up has make a batch.
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter as now

import psutil
from transformers.utils.logging import disable_progress_bar

from scripts.bench.peers.process import pss_mib
from scripts.bench.theirs import Theirs


def main() -> None:
    disable_progress_bar()
    path, dtype = sys.argv[1:]
    theirs = Theirs(Path(path), threads=os.cpu_count() or 1, dtype=dtype)
    print("ready", flush=True)

    rates = []
    for warm_up, prompts, num_tokens in json.load(sys.stdin):
        theirs.generate(warm_up, 4)
        size = len(warm_up)
        begun_s = now()
        for first in range(0, len(prompts), size):
            theirs.generate(prompts[first : first + size], num_tokens)
        rates.append(len(prompts) * num_tokens / (now() - begun_s))
    print(json.dumps({"tokens_per_s": rates, "memory_mib": pss_mib(psutil.Process())}))


if __name__ == "__main__":
    main()
