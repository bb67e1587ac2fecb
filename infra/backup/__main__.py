"""`python -m infra.backup save|restore FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from infra.backup.restore import restore
from infra.backup.save import save
from infra.stack.plan import Stack
from retroln.errors import UserError
from retroln.files import naming_disk_refusals


@click.group()
def main() -> None:
    """Back up and restore the stack of RETROLN_STACK_HOME (default var/stack)."""


@main.command("save")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--source", is_flag=True, help="Also the bucket of delivered CT.")
def save_command(folder: Path, source: bool) -> None:
    """Write a backup of the running stack into a new FOLDER."""
    _told(lambda tell: save(Stack.here(), folder, source=source, tell=tell))
    click.echo(f"saved to {folder}; it holds patient data and every secret: keep it so")


@main.command("restore")
@click.argument("folder", type=click.Path(path_type=Path))
def restore_command(folder: Path) -> None:
    """Bring the backup in FOLDER into an empty stack folder."""
    _told(lambda tell: restore(_stack_of(folder), folder, tell=tell))
    click.echo("restored; `make stack` starts it")


def _stack_of(folder: Path) -> Stack:
    """The stack of this shell, on the backup's ports unless RETROLN_STACK_PORT says otherwise."""
    stack, known = Stack.here(), folder / "private" / "stack.json"
    if "RETROLN_STACK_PORT" in os.environ or not known.exists():
        return stack
    return Stack(stack.home, json.loads(known.read_text("utf-8"))["first_port"])


def _told(do: Callable[[Callable[[str], None]], None]) -> None:
    try:
        with naming_disk_refusals():
            do(lambda what: click.echo(f"  {what} ..."))
    except (RuntimeError, UserError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
