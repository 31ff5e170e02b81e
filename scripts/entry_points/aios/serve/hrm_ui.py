"""`python -m aios.serve.hrm_ui --server-url URL`: the same as `aios ui`."""

import sys

from scripts.cli.ui import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m aios.serve.hrm_ui"))
