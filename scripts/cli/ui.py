"""`aios ui`: the web app, in a process of its own, for a fleet that runs here or elsewhere."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from scripts.cli.child_env import python_path
from scripts.cli.local_fleet import choose_fleet
from shared.settings.command_line import EXIT_BAD_SETTINGS
from shared.settings.layers import SettingsError
from shared.shipped import REPO_ROOT

PROG = "aios ui"
APP = REPO_ROOT / "scripts" / "ui" / "app.py"
URL_ENV = "API_URL"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8501


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Become the app's server. Return the exit status if that cannot be."""
    args = _parser(prog).parse_args(argv)
    try:
        require_streamlit()
        url = args.server_url or os.environ.get(URL_ENV) or _url_of_fleet()
    except SettingsError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    command = app_command(args.host, args.port)
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


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="A web app for a fleet, in a process of its own."
    )
    parser.add_argument(
        "--server-url",
        metavar="URL",
        help=f"the fleet's front (default: the fleet that runs here) [env: {URL_ENV}]",
    )
    parser.add_argument("--host", default=DEFAULT_HOST, help=f"default: {DEFAULT_HOST}")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"default: {DEFAULT_PORT}")
    return parser


def _url_of_fleet() -> str:
    fleet = choose_fleet(
        setting="server_url", given_by=f"--server-url or {URL_ENV}", chosen_by_port=False
    )
    return fleet.url


if __name__ == "__main__":
    sys.exit(main())
