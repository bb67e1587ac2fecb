"""Looking into the source, where CT is delivered."""

from __future__ import annotations

import click

from retroln.settings import Settings


@click.group()
def source() -> None:
    """Look into the source, where CT is delivered."""


@source.command()
@click.argument("pseudonym")
def find(pseudonym: str) -> None:
    """Name what PSEUDONYM (S-, C- or P-...) stands for in the source; needs RETROLN_PSEUDONYM_KEY."""
    from retroln.steps import source as step

    for key in step.find(Settings(), pseudonym):
        click.echo(key)
