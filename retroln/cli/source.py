"""Looking into the source, where CT is delivered."""

from __future__ import annotations

import click

from retroln.cli.listing import as_json_option, tell_json
from retroln.settings import Settings


@click.group()
def source() -> None:
    """Look into the source, where CT is delivered."""


@source.command()
@click.argument("pseudonym")
@as_json_option
def find(pseudonym: str, as_json: bool) -> None:
    """Name what PSEUDONYM (S-, C- or P-...) stands for in the source; needs RETROLN_PSEUDONYM_KEY."""
    from retroln.steps import source as step

    keys = step.find(Settings(), pseudonym)
    if as_json:
        tell_json(keys)
        return
    for key in keys:
        click.echo(key)
