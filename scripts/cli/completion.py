"""`aios completion`: the script by which a shell completes commands, flags and their values."""

import click
from click.shell_completion import get_completion_class

from shared.commands import EXIT_OK, Argument, Command, completion_variable

PROG = "aios"
SHELLS = ("bash", "zsh", "fish")


def show(shell: str) -> int:
    """Print the script for a shell, and return the exit status."""
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    root = click.get_current_context().find_root().command
    print(completion_class(root, {}, PROG, completion_variable(PROG)).source())
    return EXIT_OK


command = Command(
    "completion",
    callback=show,
    params=[Argument("shell", type=click.Choice(SHELLS), help="the shell that is to complete")],
    help="Print a script that lets a shell complete commands, flags and their values.",
    examples=(
        'eval "$(aios completion bash)"                             in ~/.bashrc (bash 4.4 or later)',
        'eval "$(aios completion zsh)"                              in ~/.zshrc',
        "aios completion fish > ~/.config/fish/completions/aios.fish",
    ),
)
