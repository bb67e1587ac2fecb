"""What the catalog knows, and taking a case up again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from retroln.cli.arguments import as_spelled
from retroln.cli.listing import as_json_option, show, tell_json
from retroln.errors import UserError
from retroln.settings import Settings

if TYPE_CHECKING:
    from retroln.catalog.records import ScanRecord
    from retroln.steps.workspace import Workspace


@click.command()
@click.argument("case", callback=as_spelled, required=False)
@as_json_option
def status(case: str | None, as_json: bool) -> None:
    """Show how many scans are in which state and what is held back, or the whole story of CASE."""
    from retroln.report.status import case_facts, state_facts
    from retroln.report.terminal import case_story, state_tables
    from retroln.steps.workspace import open_workspace

    workspace = open_workspace(Settings())
    catalog = workspace.catalog
    model_caution = partial(_model_caution, workspace)
    if as_json:
        tell_json(case_facts(catalog, case, model_caution) if case else state_facts(catalog))
        return
    show(*(case_story(catalog, case, model_caution) if case else state_tables(catalog)))
    if not case and not any(catalog.count_by_state().values()):
        click.echo(f"{catalog.database.address} holds no scan yet; `retroln ingest` takes them in")


def _model_caution(workspace: Workspace, scan: ScanRecord) -> str | None:
    """That a stand-in made a scan's results, and trained on what; that MLflow cannot say is said, too."""
    from retroln.report.cautions import stand_in_caution
    from retroln.steps.promote import stand_in_of

    if not scan.predicted_version:
        return None
    settings = workspace.settings.model_copy(update={"model_name": scan.predicted_model})
    try:
        stand_in = stand_in_of(replace(workspace, settings=settings).registry.tags(scan.predicted_version))
    except UserError as error:
        return f"Whether the model is a stand-in is not known: {error}"
    return stand_in_caution(stand_in) if stand_in else None


@click.command()
@click.argument("case", callback=as_spelled)
def requeue(case: str) -> None:
    """Take a quarantined or failed CASE up again with the next run."""
    from retroln.steps.workspace import open_workspace

    scan = open_workspace(Settings()).catalog.requeue(case)
    click.echo(f"{scan.case_id} is {scan.state.value}; the next run takes it up")
