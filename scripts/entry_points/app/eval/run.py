"""`python -m app.eval.run [flags]`: the same as `aios eval run`."""

import sys

from scripts.cli.aios import main

if __name__ == "__main__":
    sys.exit(main(["eval", "run", *sys.argv[1:]]))
