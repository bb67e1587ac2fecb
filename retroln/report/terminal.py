"""Tables for a terminal: states, held cases, the story of a case, the accounting of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from retroln.catalog.accounting import Accounting
from retroln.catalog.states import ScanState
from retroln.errors import NotFoundError

if TYPE_CHECKING:  # SQLAlchemy comes with it, which the file tools do without
    from retroln.catalog.catalog import Catalog

_SHOWN = (
    "patient_id",
    "revision",
    "state",
    "reason",
    "detail",
    "orientation",
    "predicted_model",
    "predicted_version",
)


def state_tables(catalog: Catalog) -> list[Table]:
    """Scans by state, then every quarantined or failed case with its reason."""
    counts = Table("state", "scans", title="Scans")
    for state, count in catalog.count_by_state().items():
        counts.add_row(str(getattr(state, "value", state)), str(count))
    held = Table("case", "state", "reason", "what to do", title="Held back")
    for state in (ScanState.QUARANTINED, ScanState.FAILED):
        for scan in catalog.scans(state=state):
            held.add_row(scan.case_id, state.value, scan.reason or "", scan.detail or "")
    return [counts, held] if held.row_count else [counts]


def case_story(catalog: Catalog, case_id: str) -> list[Table]:
    """The present scan of a case, everything that happened to it, and its nodes."""
    scan = catalog.current_scan(case_id)
    if scan is None:
        raise NotFoundError(
            f"no case {case_id!r}", fix="`retroln status` lists what is held; ids match whole"
        )
    facts = Table("what", "value", title=f"Case {case_id}")
    for name in _SHOWN:
        value = getattr(scan, name)
        facts.add_row(name, str(getattr(value, "value", value)))
    events = Table("when", "from", "to", "reason", title="Events")
    for event in catalog.case_history(case_id).events:
        events.add_row(
            f"{event.at:%Y-%m-%d %H:%M:%S}",
            *(str(v or "") for v in (event.from_state, event.to_state, event.reason)),
        )
    found = Table("node", "short mm", "long mm", "volume mm3", "station", "RECIST", title="Nodes")
    for node in catalog.nodes_of(scan.scan_id):
        sizes = (f"{v:.1f}" for v in (node.short_axis_mm, node.long_axis_mm, node.volume_mm3))
        found.add_row(str(node.label), *sizes, node.station or "", node.recist)
    return [facts, events, found]


def stage_table(stages: Mapping[str, Accounting], title: str) -> Table:
    """One row per stage; every row balances."""
    table = Table("stage", "in", "done", "skipped", "quarantined", "failed", title=title)
    for name, accounting in stages.items():
        figures = (
            accounting.n_in,
            accounting.done,
            accounting.skipped,
            accounting.quarantined,
            accounting.failed,
        )
        table.add_row(name, *(str(figure) for figure in figures))
    return table


def count_table(cases: Mapping[str, Sequence[str]], title: str, columns: Sequence[str]) -> Table:
    """One row per key: how many cases, and the first few."""
    table = Table(*columns, title=title)
    for name, ids in cases.items():
        table.add_row(name, str(len(ids)), ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else ""))
    return table


def figure_table(columns: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Figures as rows, one column per detector."""
    table = Table("figure", *columns, title=title)
    for name in next(iter(columns.values())):
        table.add_row(name, *(_shown(figures.get(name)) for figures in columns.values()))
    return table


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
