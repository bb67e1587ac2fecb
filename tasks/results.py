"""What inference found, as a table on the run's page with a link to each case's own page."""

from __future__ import annotations

from typing import Any

from retroln.catalog.records import PredictionRecord
from retroln.settings import Settings
from retroln.steps.infer import Champion
from retroln.steps.workspace import Workspace, open_workspace
from tasks.artifacts import show_rows

_ROWS = 200  # each row carries a signed address


def show_results(settings: Settings, run_id: int, model: Champion) -> None:
    """One row per case that this run inferred: nodes, the largest, and the page."""
    workspace = open_workspace(settings)
    found = workspace.catalog.predictions_of_run(run_id, _ROWS)
    rows = [_row(workspace, case_id, prediction) for case_id, prediction in found]
    hours = f"links work for {settings.page_link_h:g} h" if settings.store_uri.startswith("s3") else "files"
    said = [f"Findings of version {model.version}; {hours}.", *model.cautions, "Research only."]
    show_rows("infer-results", rows, " ".join(said))


def _row(workspace: Workspace, case_id: str, prediction: PredictionRecord) -> dict[str, Any]:
    nodes = workspace.catalog.nodes_of(prediction.scan_id, version=prediction.version)
    axes = [node.short_axis_mm for node in nodes]
    page = prediction.page_key
    address = workspace.store.link(page, 3600 * workspace.settings.page_link_h) if page else None
    return {
        "case": case_id,
        "nodes": prediction.n_nodes,
        "target (>= 15 mm)": sum(node.recist == "target" for node in nodes),
        "largest short axis (mm)": round(max(axes), 1) if axes else None,
        "page": f"[page.html]({address})" if address else None,
    }
