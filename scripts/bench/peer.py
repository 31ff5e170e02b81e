"""An engine alone in a process, the in-process counterpart of one worker. Speaks lines of JSON; see `serve.Peer`.

Times are those of `clock.now`.
"""

import argparse
import json
import sys
from pathlib import Path

from scripts.bench.ours import Ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--quantize", default="none")
    args = parser.parse_args()
    ours = Ours(args.path, threads=args.threads, max_batch=args.max_batch_size, quantize=args.quantize)
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        said = ours.generate(request["prompts"], [request["length"]] * len(request["prompts"]))
        times = {"first_at": [item.first_at for item in said], "ended_at": [item.ended_at for item in said]}
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
