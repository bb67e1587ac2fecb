"""Retire: a person says that a case should never have been taken in as it was, say under another patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from retroln.catalog.records import ScanDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.errors import NotFoundError
from retroln.settings import Settings
from retroln.steps.case_objects import objects_of
from retroln.steps.claimed import in_hand
from retroln.steps.words import Words
from retroln.steps.workspace import Workspace, open_workspace

RETIRED = "retired"
"""Reason of a case that a person retired."""


@dataclass(frozen=True)
class Retired:
    """A case that was retired.

    Attributes:
        scan: the case as it stands now, held as `retired`.
        deleted: keys of the objects that are gone.
        datasets: versions that the case is in; the scans that they hold stay.
    """

    scan: ScanRecord
    deleted: tuple[str, ...]
    datasets: tuple[str, ...]


def retire(settings: Settings, case_id: str, words: Words) -> Retired:
    """Hold a case for good, and delete what is stored and derived of it, unless a dataset version holds it.

    What the source delivers of the case later, under whatever patient, is taken in as new; the delivery
    that was retired stays held until `requeue`. A call that was cut off is finished by the same call.

    Raises:
        NotFoundError: no such case.
        UserError: who or why is missing.
        ConflictError: a worker has the case in hand; nothing was changed.
        WithdrawnError: the patient has withdrawn.
        RefusedError: the store keeps an object.
    """
    workspace, said = open_workspace(settings), words.complete("a case")
    catalog = workspace.catalog
    scan = catalog.current_scan(case_id)
    if scan is None:
        raise NotFoundError(f"no case {case_id} in the catalog", fix="look at `retroln status`")
    with in_hand(workspace, f"retire:{case_id}", [scan]):
        if scan.reason != RETIRED:
            scan = _hold(workspace, scan, f"retired by {said.reviewer}: {said.comment}")
        deleted = tuple(_empty(workspace, scan))
    return Retired(scan, deleted, catalog.case_history(case_id).datasets)


def _hold(workspace: Workspace, scan: ScanRecord, why: str) -> ScanRecord:
    """The case held; of a scan whose CT is stored by a revision of its own, so that it is out of use."""
    catalog = workspace.catalog
    if scan.ct_key is None:
        return catalog.quarantine(scan.scan_id, RETIRED, why, None)
    draft = ScanDraft(
        case_id=scan.case_id,
        patient_id=scan.patient_id,
        state=ScanState.QUARANTINED,
        source_uri=scan.source_uri,
        source_fingerprint=scan.source_fingerprint,
        source_sha256=scan.source_sha256,
        label_ids=scan.label_ids,
        reason=RETIRED,
        detail=why,
    )
    return catalog.add_scan(draft, None, follows=scan.scan_id)


def _empty(workspace: Workspace, scan: ScanRecord) -> Iterator[str]:
    """Delete the earlier revisions, objects first; their keys."""
    for one in workspace.catalog.unused_revisions(scan.case_id, scan.patient_id):
        for info in list(objects_of(workspace, one)):
            workspace.store.delete(info.key)
            yield info.key
        workspace.catalog.empty_revision(one.scan_id, RETIRED)
