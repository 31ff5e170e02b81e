"""`python -m aios.serve.hrm_server [flags]`: the same as `aios serve hrm`."""

import sys

from scripts.cli.old_names.commands import hrm_server

if __name__ == "__main__":
    sys.exit(hrm_server())
