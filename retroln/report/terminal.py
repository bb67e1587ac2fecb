"""Tables for a terminal: states, held cases, the story of a case, the accounting of stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from retroln.catalog.accounting import Accounting
from retroln.report.cautions import case_cautions
from retroln.report.status import current_scan, held_scans

if TYPE_CHECKING:  # SQLAlchemy comes with it, which the file tools do without
    from retroln.catalog.catalog import Catalog
    from retroln.catalog.records import LandmarkReviewRecord, LandmarksRecord, NodeRecord, ScanRecord

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


_BESIDE = "delivery held, the earlier scan stays"


def state_tables(catalog: Catalog) -> list[Table]:
    """Scans by state, then every quarantined or failed case with its reason."""
    counts = Table("state", "scans", title="Scans")
    for state, count in catalog.count_by_state().items():
        counts.add_row(str(getattr(state, "value", state)), str(count))
    held = Table("case", "state", "reason", "what to do", title="Held back")
    for scan in held_scans(catalog):
        held.add_row(scan.case_id, scan.state.value, scan.reason or "", scan.detail or "")
    for one in catalog.held_deliveries():
        held.add_row(one.case_id, _BESIDE, one.reason, one.detail or "")
    return [counts, held] if held.row_count else [counts]


def case_story(
    catalog: Catalog, case_id: str, model_caution: Callable[[ScanRecord], str | None]
) -> list[Table]:
    """The present scan of a case, what must be known of it, everything that happened to it, and its nodes.

    Args:
        model_caution: what is to be said of the model that made a scan's results; None for nothing.

    Raises:
        NotFoundError: no such case in this catalog.
    """
    scan = current_scan(catalog, case_id)
    facts = Table("what", "value", title=f"Case {case_id}")
    for name in _SHOWN:
        value = getattr(scan, name)
        facts.add_row(name, "" if value is None else str(getattr(value, "value", value)))
    if held := catalog.held_delivery(case_id):
        facts.add_row(_BESIDE, f"{held.reason}: {held.detail}")
    for said in catalog.rulings_on(scan.patient_id):
        other = ({said.patient_id, said.other_patient_id} - {scan.patient_id}).pop()
        facts.add_row("is not", f"{other}, by {said.reviewer}, {said.at:%Y-%m-%d}: {said.comment}")
    history = catalog.case_history(case_id)
    events = Table("when", "from", "to", "reason", "detail", title="Events")
    for event in history.events:
        events.add_row(
            f"{event.at:%Y-%m-%d %H:%M:%S}",
            *(str(v or "") for v in (event.from_state, event.to_state, event.reason, event.detail)),
        )
    of_model = model_caution(scan)
    cautions = [*([of_model] if of_model else []), *case_cautions(history)]
    nodes = _node_table(catalog.nodes_of(scan.scan_id))
    return [facts, *([_caution_table(cautions)] if cautions else []), events, nodes]


def _caution_table(said: Sequence[str]) -> Table:
    table = Table("check first", title="Cautions")
    for sentence in said:
        table.add_row(sentence)
    return table


def _node_table(nodes: Sequence[NodeRecord]) -> Table:
    """One row per node; a column `station` only if one has a station, which takes an organ map."""
    with_station = any(node.station for node in nodes)
    places = ("level", "station") if with_station else ("level",)
    table = Table("node", "short mm", "long mm", "volume mm3", *places, "RECIST", title="Nodes")
    for node in nodes:
        sizes = (f"{v:.1f}" for v in (node.short_axis_mm, node.long_axis_mm, node.volume_mm3))
        table.add_row(str(node.label), *sizes, *(getattr(node, p) or "" for p in places), node.recist)
    return table


def queue_table(held: Sequence[tuple[ScanRecord, LandmarksRecord | None]]) -> Table:
    """Cases that wait for a look at their landmarks, in the given order."""
    table = Table("case", "patient", "since", "reason", "confidence", "what was found", title="Landmarks")
    for scan, landmarks in held:
        known = landmarks is not None and landmarks.confidence is not None
        table.add_row(
            scan.case_id,
            scan.patient_id,
            f"{scan.updated_at:%Y-%m-%d %H:%M}Z",
            scan.reason or "",
            f"{landmarks.confidence:.2f}" if landmarks and known else "",
            scan.detail or "",
        )
    return table


def level_table(levels: Mapping[str, Mapping[str, Any]]) -> Table:
    """What was measured of each level, top to bottom."""
    columns = ("level", "ml", "high mm", "wide mm", "to next mm", "drift mm", "bone HU", "stray", "border")
    table = Table(*columns, title="Levels")
    for name, found in levels.items():
        lengths = [found.get(key) for key in ("height_mm", "width_mm", "to_next_mm", "drift_mm")]
        contrast, fragments = found.get("bone_contrast_hu"), found.get("fragments", {})
        table.add_row(
            name,
            f"{found['volume_mm3'] / 1000:.1f}",
            *("" if length is None else f"{length:.0f}" for length in lengths),
            "" if contrast is None else f"{contrast:.0f}",
            f"{fragments['count']} ({fragments['share']:.1%})" if fragments.get("count") else "",
            " ".join(found.get("touches", ())),
        )
    return table


def word_table(words: Sequence[LandmarkReviewRecord]) -> Table:
    """What people said of a case's landmarks, oldest first."""
    table = Table("when", "scan", "who", "what", "why", title="Words on the landmarks")
    for word in words:
        table.add_row(
            f"{word.at:%Y-%m-%d %H:%M}Z", str(word.scan_id), word.reviewer, _said(word), word.comment
        )
    return table


def _said(word: LandmarkReviewRecord) -> str:
    if word.action == "accept":
        return "accepted as labelled"
    if word.vertebrae_key:
        return f"corrected label map {word.vertebrae_key.rsplit('/', 1)[-1]}"
    extent = f", T12-L5 at {_numbers(word.extent_world_mm)}" if word.extent_world_mm else ""
    return f"L2 placed at {_numbers(word.l2_world_mm or ())}{extent} mm"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


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


def figure_table(columns: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Figures as rows, one column per detector."""
    table = Table("figure", *columns, title=title)
    for name in next(iter(columns.values())):
        table.add_row(name, *(_shown(figures.get(name)) for figures in columns.values()))
    return table


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
