"""What the catalog knows, and taking a case up again."""

from __future__ import annotations

import click

from retroln.settings import Settings


@click.command()
@click.argument("case", required=False)
def status(case: str | None) -> None:
    """Show how many scans are in which state and what is held back, or the whole story of CASE."""
    from rich.console import Console

    from retroln.report.terminal import case_story, state_tables
    from retroln.steps.workspace import open_workspace

    catalog = open_workspace(Settings()).catalog
    for table in case_story(catalog, case) if case else state_tables(catalog):
        Console().print(table)


@click.command()
@click.argument("case")
def requeue(case: str) -> None:
    """Take a quarantined or failed CASE up again with the next run."""
    from retroln.steps.workspace import open_workspace

    scan = open_workspace(Settings()).catalog.requeue(case)
    click.echo(f"{scan.case_id} is {scan.state.value}; the next run takes it up")
