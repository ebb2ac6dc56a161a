"""How commands are registered, and groups of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import typer
from typer.core import TyperGroup


def paragraphs(text: str | None) -> str:
    """A docstring with each paragraph on one line, which the help wraps to the terminal's width."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n"))


def add_command(
    app: typer.Typer, name: str, command: Callable[..., None], *, help: str | None = None, panel: str | None = None
) -> None:
    """Register a command. help: its docstring, unless given. panel: the heading under which it is listed."""
    app.command(name, help=paragraphs(help or command.__doc__), rich_help_panel=panel)(command)


def command_group(help: str) -> typer.Typer:
    """A group of commands. Without one it prints its help, and raises ValueError."""
    app = typer.Typer(help=paragraphs(help))

    @app.callback(invoke_without_command=True, help=paragraphs(help))
    def root(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())
            assert isinstance(context.command, TyperGroup)
            names = ", ".join(context.command.list_commands(context))
            raise ValueError(f"{context.command_path} needs a command: {names}")

    return app
