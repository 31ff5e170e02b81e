"""Run a fleet on one machine.

python -m levanter.serve.min_server [flags]
uvicorn levanter.serve.min_server:app
"""

import sys

if __name__ == "__main__":
    from scripts.cli.old_names.commands import min_server

    sys.exit(min_server())
else:
    from scripts.cli.old_names.app import app as app
