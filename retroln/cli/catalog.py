"""The catalog's schema: looking at it, and the one command that migrates it on a server."""

from __future__ import annotations

import click

from retroln.cli.listing import as_json_option, tell_json
from retroln.counted import counted
from retroln.settings import Settings


@click.group(invoke_without_command=True)
@as_json_option
@click.pass_context
def catalog(context: click.Context, as_json: bool) -> None:
    """Show which schema the catalog has and which one this RetroLN works with."""
    if context.invoked_subcommand is None:
        from retroln.steps import schema

        found = schema.read(Settings())
        if as_json:
            tell_json(found._asdict())
            return
        click.echo(f"schema {found.present or 'none'}, wanted {found.wanted}")


@catalog.command()
def upgrade() -> None:
    """Bring the catalog's tables to the schema of this RetroLN. Back up and stop the workers before."""
    from retroln.steps import schema

    before = schema.upgrade(Settings())
    if before.is_current:
        click.echo(f"schema {before.wanted} already, nothing to do")
    else:
        click.echo(f"schema {before.present or 'none'} -> {before.wanted}")


@catalog.command()
def identify() -> None:
    """Look at scans that an older RetroLN took in, and hold those whose image is another patient's already.

    Each CT is read once from the store. Cut off, it goes on where it was.
    """
    from retroln.steps.likeness import identify as step

    done = step(Settings())
    held = {case: reason for case, reason in done.items() if reason}
    click.echo(f"{counted(len(done), 'scan')} looked at, {len(held)} held")
    for case, reason in held.items():
        click.echo(f"{case}: {reason}; `retroln status {case}` says of whom and what to do")
