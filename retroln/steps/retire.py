"""Retire: a person says that a case should never have been taken in as it was, say under another patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from retroln.catalog.likeness import RETIRED
from retroln.catalog.records import ScanRecord
from retroln.errors import ConflictError, NotFoundError
from retroln.settings import Settings
from retroln.steps.case_objects import objects_of
from retroln.steps.claimed import in_hand
from retroln.steps.words import Words
from retroln.steps.workspace import Workspace, open_workspace


@dataclass(frozen=True)
class Retired:
    """A case that was retired.

    Attributes:
        scan: the case as it stands now; held as `retired` unless another delivery took its place since.
        deleted: keys of the objects that are gone.
        datasets: versions that the case is in; the scans that they hold stay.
    """

    scan: ScanRecord
    deleted: tuple[str, ...]
    datasets: tuple[str, ...]


def retire(settings: Settings, case_id: str, patient_id: str, words: Words) -> Retired:
    """Hold a case for good, and delete what is stored and derived of it, unless a dataset version holds it.

    What the source delivers of the case later, under whatever patient, is taken in as new; the very delivery
    that was retired stays held until `requeue`, or until another came in between. A call that was cut off is
    finished by the same call.

    Args:
        patient_id: whose the case is, by which the word is bound to what was looked at.

    Raises:
        NotFoundError: no such case.
        UserError: who or why is missing.
        ConflictError: the case is another patient's by now, or a worker has it in hand; nothing was changed.
        WithdrawnError: the patient has withdrawn.
        RefusedError: the store keeps an object; call again.
    """
    workspace, said = open_workspace(settings), words.complete("a case")
    catalog = workspace.catalog
    scan = catalog.current_scan(case_id)
    if scan is None:
        raise NotFoundError(f"no case {case_id} in the catalog", fix="look at `retroln status`")
    if scan.patient_id != patient_id and not catalog.given_up(case_id, patient_id):
        raise ConflictError(
            f"case {case_id} is not of patient {patient_id}",
            expected=f"--patient {scan.patient_id}, if that is the case to retire",
            got=patient_id,
            fix=f"look at `retroln status {case_id}`",
        )
    with in_hand(workspace, f"retire:{case_id}", [scan]):
        if scan.patient_id == patient_id and scan.reason != RETIRED:
            scan = catalog.retire(scan.scan_id, f"retired by {said.reviewer}: {said.comment}")
        deleted = tuple(_empty(workspace, case_id, patient_id))
    return Retired(scan, deleted, catalog.case_history(case_id).datasets)


def _empty(workspace: Workspace, case_id: str, patient_id: str) -> Iterator[str]:
    """Delete what was given up, objects first; their keys."""
    for one in workspace.catalog.given_up(case_id, patient_id):
        for info in list(objects_of(workspace, one)):
            workspace.store.delete(info.key)
            yield info.key
        workspace.catalog.empty_revision(one.scan_id, RETIRED)
