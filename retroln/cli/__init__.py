"""The command line: parse, call one step, print what came of it. Commands load when they are used."""

from __future__ import annotations

import sys
from importlib import import_module
from io import TextIOWrapper

import click

from retroln.errors import UserError
from retroln.files import naming_disk_refusals
from retroln.machine import share_threads

_COMMANDS = {
    "landmarks": "landmarks",
    "crop": "files",
    "paste": "files",
    "measure": "measure",
    "predict": "predict",
    "ingest": "pipeline",
    "prepare": "pipeline",
    "train": "pipeline",
    "evaluate": "pipeline",
    "infer": "pipeline",
    "promote": "review",
    "rollback": "review",
    "reconcile": "review",
    "audit": "review",
    "status": "state",
    "requeue": "state",
    "review": "landmarks_review",
    "withdraw": "withdraw",
    "source": "source",
    "weights": "weights",
    "catalog": "catalog",
    "doctor": "doctor",
}


class _LazyGroup(click.Group):
    """Imports a command's module only when the command is named, so that `crop` stays light."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = getattr(import_module(f"retroln.cli.{_COMMANDS[name]}"), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="retroln")
def cli() -> None:
    """Find and measure retroperitoneal lymph nodes in CT. Research software, not a medical device.

    The steps of the platform (ingest prepare train evaluate promote rollback infer) read their places
    from RETROLN_* variables; `retroln doctor` shows them. The file tools (crop paste measure predict)
    need no set-up; landmarks needs the variables that pin TotalSegmentator's weights.
    """


def main() -> None:
    """Entry point: what a user can mend is one line on stderr and an exit code of its own."""
    share_threads(1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may know fewer letters than a name has
            stream.reconfigure(errors="backslashreplace")
    try:
        with naming_disk_refusals():
            cli.main(standalone_mode=False)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
