"""`aios ui`: the web app, in a process of its own, for a fleet that runs here or elsewhere."""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec

import click

from scripts.cli.child_env import python_path
from scripts.cli.fleet_tool import told
from scripts.cli.local_fleet import choose_fleet
from shared.commands import Command, Flag, run_command
from shared.settings.layers import SettingsError
from shared.shipped import REPO_ROOT

PROG = "aios ui"
APP = REPO_ROOT / "scripts" / "ui" / "app.py"
URL_ENV = "API_URL"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8501


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Become the app's server. Return the exit status if that cannot be."""
    return run_command(command, sys.argv[1:] if argv is None else argv, prog)


def run(server_url: str | None, host: str, port: int) -> int:
    """Become the app's server. Return the exit status if that cannot be."""
    return told(click.get_current_context().command_path, partial(_become, server_url, host, port))


def _become(server_url: str | None, host: str, port: int) -> int:
    require_streamlit()
    url = server_url or os.environ.get(URL_ENV) or _url_of_fleet()
    command = app_command(host, port)
    os.execve(command[0], command, app_env(os.environ, url))


def app_command(host: str, port: int) -> list[str]:
    """Return the command that serves the app."""
    # What else Streamlit is told stands in the app's .streamlit/config.toml.
    flags = [f"--server.address={host}", f"--server.port={port}"]
    # -P: a folder `scripts` in the current directory is not ours.
    return [sys.executable, "-P", "-m", "streamlit", "run", str(APP), *flags]


def app_env(env: Mapping[str, str], url: str) -> dict[str, str]:
    """Return the environment of an app that calls the server at `url`."""
    return {**env, URL_ENV: url, "PYTHONPATH": python_path()}


def require_streamlit() -> None:
    """Raise SettingsError if the app's packages are missing; the message has a remedy."""
    missing = [name for name in ("streamlit", "httpx") if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"not installed: {', '.join(missing)}; pip install 'aios-hrm-fleet[ui]'"
        )


def _url_of_fleet() -> str:
    fleet = choose_fleet(
        setting="server_url", given_by=f"--server-url or {URL_ENV}", chosen_by_port=False
    )
    return fleet.url


command = Command(
    "ui",
    callback=run,
    params=[
        Flag(
            "--server-url",
            metavar="URL",
            help=f"the fleet's front (default: the fleet that runs here) [env: {URL_ENV}]",
        ),
        Flag("--host", default=DEFAULT_HOST, metavar="HOST", help=f"default: {DEFAULT_HOST}"),
        Flag(
            "--port",
            type=int,
            default=DEFAULT_PORT,
            metavar="N",
            help=f"default: {DEFAULT_PORT}",
        ),
    ],
    help="A web app for a fleet, in a process of its own.",
    examples=("aios ui", "aios ui --server-url https://fleet.example.org --port 9001"),
)


if __name__ == "__main__":
    sys.exit(main())
