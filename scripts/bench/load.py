"""Put a load on running fronts, and print its figures.

    # an open loop, Poisson arrivals
    python -m scripts.bench.load --url http://127.0.0.1:8000 --rate 10 --seconds 30
    python -m scripts.bench.load --rate 20 --lengths 40:16x3,800:128 --classes interactive=1,bulk=3

    # a closed loop
    python -m scripts.bench.load --clients 32 --seconds 30

    # 8 prompts in each request
    python -m scripts.bench.load --rate 10 --arrivals even --prompts 8 --lengths 40:16

The requests stream `/generate_stream`. All times count from when a request was due. The exit status
is 1 if a request failed. A refusal for lack of room (429 or 503) is no failure.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from scripts.bench.loads.caller import Caller
from scripts.bench.loads.drive import closed_loop, open_loop
from scripts.bench.loads.plan import Mix, classes_of, lengths_of
from scripts.bench.loads.tally import HEADER, Summary, Window, by_class, row, summary


def main(argv: Sequence[str] | None = None) -> int:
    """Put the load of the flags on fronts, print its figures, and return the exit status."""
    args = _parser().parse_args(argv)
    mix = Mix(args.lengths, args.classes, num_prompts=args.prompts, may_end=args.may_end)
    total, classes = asyncio.run(_run(args, mix))
    if args.json:
        documents = {name: asdict(figures) for name, figures in classes.items()}
        print(json.dumps({"all": asdict(total), "classes": documents}))
    else:
        print(HEADER)
        print(row("all", total))
        if len(classes) > 1:
            for name, figures in classes.items():
                print(row(name, figures))
        for reason, count in (total.refused | total.failed).items():
            print(f"{count} x {reason}")
    return 1 if total.failed else 0


async def _run(args: argparse.Namespace, mix: Mix) -> tuple[Summary, dict[str, Summary]]:
    """Return the summary of all requests, and that of each class."""
    headers = {}
    if args.key:
        headers["Authorization"] = f"Bearer {args.key}"
    callers = [Caller(url, headers) for url in args.url or ["http://127.0.0.1:8000"]]
    try:
        if args.clients:
            requests = mix.requests(args.seed)
            outcomes, window = await closed_loop(callers, requests, args.seconds, args.clients)
        else:
            requests = mix.requests(args.seed, args.rate, is_poisson=args.arrivals == "poisson")
            outcomes, window = await open_loop(callers, requests, args.seconds)
    finally:
        for caller in callers:
            caller.close()
    counted = Window(window.started + args.warm_up, window.ended)
    return summary(outcomes, counted), by_class(outcomes, counted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url", action="append", help="a front, repeatable (default: http://127.0.0.1:8000)"
    )
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--rate",
        type=float,
        default=10.0,
        help="requests a second, whether or not they are answered",
    )
    load.add_argument(
        "--clients", type=int, help="in place of a rate: clients that wait for their answers"
    )
    parser.add_argument("--arrivals", choices=["poisson", "even"], default="poisson")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--warm-up", type=float, default=0.0, help="seconds at the beginning that do not count"
    )
    parser.add_argument(
        "--lengths",
        type=lengths_of,
        default="40:32",
        help="CHARACTERS:TOKENSxWEIGHT, comma-separated",
    )
    parser.add_argument("--prompts", type=int, default=1, help="in each request")
    parser.add_argument(
        "--may-end",
        action="store_true",
        help="let the model end an answer before it has its tokens",
    )
    parser.add_argument(
        "--classes", type=classes_of, default="default", help="CLASS=WEIGHT, comma-separated"
    )
    parser.add_argument("--key", help="API key")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, classes and arrivals")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
