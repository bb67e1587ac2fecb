"""What `retroln status` shows, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from retroln.catalog.states import ScanState
from retroln.errors import NotFoundError
from retroln.report.cautions import case_cautions

if TYPE_CHECKING:  # SQLAlchemy comes with it, which the file tools do without
    from retroln.catalog.catalog import Catalog
    from retroln.catalog.records import ScanRecord


def held_scans(catalog: Catalog) -> list[ScanRecord]:
    """Every quarantined, then every failed scan."""
    return [
        scan for state in (ScanState.QUARANTINED, ScanState.FAILED) for scan in catalog.scans(state=state)
    ]


def state_facts(catalog: Catalog) -> dict[str, Any]:
    """`scans` by state, what is `held`, and the `held_deliveries` beside scans that stay."""
    return {
        "scans": {str(getattr(state, "value", state)): n for state, n in catalog.count_by_state().items()},
        "held": [asdict(scan) for scan in held_scans(catalog)],
        "held_deliveries": [asdict(one) for one in catalog.held_deliveries()],
    }


def current_scan(catalog: Catalog, case_id: str) -> ScanRecord:
    """The present scan of a case. Raises `NotFoundError` for a case that the catalog does not know."""
    scan = catalog.current_scan(case_id)
    if scan is None:
        raise NotFoundError(
            f"no case {case_id!r}",
            file=catalog.database.address,
            fix="`retroln status` lists what is held; ids match whole",
        )
    return scan


def case_facts(
    catalog: Catalog, case_id: str, model_caution: Callable[[ScanRecord], str | None]
) -> dict[str, Any]:
    """Everything known of a case; arguments and errors as of `terminal.case_story`."""
    scan, history = current_scan(catalog, case_id), catalog.case_history(case_id)
    held, of_model = catalog.held_delivery(case_id), model_caution(scan)
    return {
        "scan": asdict(scan),
        "held_delivery": held and asdict(held),
        "told_apart": [asdict(one) for one in catalog.rulings_on(scan.patient_id)],
        "cautions": [*([of_model] if of_model else []), *case_cautions(history)],
        **asdict(history),
    }
