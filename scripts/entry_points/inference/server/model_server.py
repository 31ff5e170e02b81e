"""`python -m inference.server.model_server [flags]`: the same as `aios serve hrm`."""

import sys

from scripts.cli.old_names.commands import model_server

if __name__ == "__main__":
    sys.exit(model_server())
