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
from scripts.ui.config import CONFIG_ENV, AppConfig, load_config, parse_config, theme_flags
from shared.commands import Command, Flag, run_command
from shared.settings.layers import SettingsError
from shared.settings.paths import read_text
from shared.settings.settings import Settings
from shared.shipped import REPO_ROOT

PROG = "aios ui"
APP = REPO_ROOT / "scripts" / "ui" / "app.py"
URL_ENV = "API_URL"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8501


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Become the app's server. Return the exit status if that cannot be."""
    return run_command(command, sys.argv[1:] if argv is None else argv, prog)


def run(server_url: str | None, config: str | None, host: str, port: int) -> int:
    """Become the app's server. Return the exit status if that cannot be."""
    become = partial(_become, server_url, config, host, port)
    return told(click.get_current_context().command_path, become)


def _become(server_url: str | None, path: str | None, host: str, port: int) -> int:
    require_streamlit()
    path = path or os.environ.get(CONFIG_ENV)
    config = _checked(path) if path else AppConfig()
    url = server_url or os.environ.get(URL_ENV) or _url_of_fleet()
    command = app_command(host, port, config)
    os.execve(command[0], command, app_env(os.environ, url, path))


def _checked(path: str) -> AppConfig:
    """Return the configuration of a file whose names are all known. Raise SettingsError."""
    # Streamlit takes a second to import, which only a configuration is worth.
    from scripts.ui.shell import config_problems

    config = load_config(path)
    for problem in config_problems(config):
        raise SettingsError(f"{path}: {problem}")
    return config


def app_command(host: str, port: int, config: AppConfig) -> list[str]:
    """Return the command that serves the app."""
    # What else Streamlit is told stands in the app's .streamlit/config.toml.
    flags = [f"--server.address={host}", f"--server.port={port}", *theme_flags(config.theme)]
    # -P: a folder `scripts` in the current directory is not ours.
    return [sys.executable, "-P", "-m", "streamlit", "run", str(APP), *flags]


def app_env(env: Mapping[str, str], url: str, config_path: str | None) -> dict[str, str]:
    """Return the environment of an app that calls the server at `url`."""
    environment = {**env, URL_ENV: url, "PYTHONPATH": python_path()}
    if config_path:
        environment[CONFIG_ENV] = os.path.abspath(os.path.expanduser(config_path))
    return environment


def config_of(settings: Settings) -> AppConfig:
    """Return the configuration that the settings of a fleet name. Raise SettingsError."""
    if settings.ui_config is None:
        return AppConfig()
    return parse_config(read_text(settings, "ui_config"), settings.ui_config)


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
        Flag(
            "--config",
            metavar="FILE",
            help=f"YAML with your own title, pages, examples and colours [env: {CONFIG_ENV}]",
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
