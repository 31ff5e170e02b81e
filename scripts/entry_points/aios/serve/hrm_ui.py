"""`python -m aios.serve.hrm_ui --server-url URL`: the same as `aios ui`."""

import sys

from scripts.cli.old_names.commands import hrm_ui

if __name__ == "__main__":
    sys.exit(hrm_ui())
