"""The states of a scan and the only ways between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from retroln.errors import ConflictError


class ScanState(StrEnum):
    """Where a scan stands. Exactly one revision of a case is not `superseded`."""

    INGESTED = "ingested"  # stored and canonical; waits for prepare
    PREPARED = "prepared"  # cropped; waits for training or inference
    QUARANTINED = "quarantined"  # its input cannot be used; waits for a person
    FAILED = "failed"  # something broke; may be tried again
    REQUEUED = "requeued"  # a person released it before anything was stored; waits for ingest
    SUPERSEDED = "superseded"  # a newer revision took its place; the same bytes bring it back
    WITHDRAWN = "withdrawn"  # the patient took back consent; nothing of the scan is kept


_S = ScanState
TRANSITIONS: Mapping[ScanState, frozenset[ScanState]] = MappingProxyType(
    {
        _S.INGESTED: frozenset({_S.PREPARED, _S.QUARANTINED, _S.FAILED, _S.SUPERSEDED, _S.WITHDRAWN}),
        _S.PREPARED: frozenset({_S.INGESTED, _S.QUARANTINED, _S.FAILED, _S.SUPERSEDED, _S.WITHDRAWN}),
        _S.QUARANTINED: frozenset(
            {_S.INGESTED, _S.PREPARED, _S.REQUEUED, _S.QUARANTINED, _S.SUPERSEDED, _S.WITHDRAWN}
        ),
        _S.FAILED: frozenset(
            {
                _S.INGESTED,
                _S.PREPARED,
                _S.REQUEUED,
                _S.QUARANTINED,
                _S.FAILED,
                _S.SUPERSEDED,
                _S.WITHDRAWN,
            }
        ),
        _S.REQUEUED: frozenset({_S.QUARANTINED, _S.FAILED, _S.SUPERSEDED, _S.WITHDRAWN}),
        _S.SUPERSEDED: frozenset({_S.INGESTED}),
        _S.WITHDRAWN: frozenset(),
    }
)
FIRST_STATES = frozenset({_S.INGESTED, _S.QUARANTINED, _S.FAILED})


def require_transition(case_id: str, before: ScanState, after: ScanState) -> None:
    """Raise `ConflictError` unless a scan may go from `before` to `after`."""
    if after not in TRANSITIONS[before]:
        allowed = ", ".join(sorted(TRANSITIONS[before])) or "nothing"
        raise ConflictError(
            f"case {case_id} cannot become {after}",
            expected=f"from {before} to: {allowed}",
            got=after,
            fix="look at `retroln status` for the case's present state",
        )


def state_after_requeue(*, has_ct: bool, has_crop: bool) -> ScanState:
    """The step that takes a released scan up again: the one after what is stored already."""
    if has_crop:
        return ScanState.PREPARED
    return ScanState.INGESTED if has_ct else ScanState.REQUEUED
