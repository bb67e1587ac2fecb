"""Withdraw: a patient takes back consent, and everything that holds the patient goes or is marked.

The order makes it safe to stop anywhere and call again: the withdrawal is recorded first, which takes the
scans out of work; then objects go, then rows, then this machine's caches; then MLflow is put right.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from retroln.catalog.catalog import Catalog
from retroln.catalog.records import ScanRecord
from retroln.errors import ConflictError, NotFoundError, RefusedError, UserError
from retroln.settings import Settings
from retroln.steps.holdings import Holdings, survey
from retroln.steps.workspace import Workspace, open_workspace
from retroln.storage.base import ObjectInfo, ObjectStore
from retroln.tracking import traces

VERSION_TAG = "withdrawn.patients"
"""Tag of a model version: how many patients of its training and test set have taken back consent."""
_HAND = "withdraw"


def withdraw(settings: Settings, patient_id: str, *, reason: str, by: str) -> Holdings:
    """Remove a patient, or finish a withdrawal that was cut off; what is there no more is no error.

    Returns:
        What held the patient when this call began.

    Raises:
        UserError: `reason` or `by` is empty.
        NotFoundError: nothing of the patient is in the catalog or the source.
        ConflictError: a worker has one of the scans in hand; nothing was changed.
        UnavailableError: a server is away; call again.
        RefusedError: the store keeps an object; everything else is removed.
    """
    if not (reason.strip() and by.strip()):
        raise UserError(
            "a withdrawal says why and by whom", got="an empty text", fix="give --reason and --by"
        )
    require_known(survey(settings, patient_id))
    return _remove(settings, patient_id, reason.strip(), by.strip())


def finish(settings: Settings, patient_id: str, *, hand: str = _HAND) -> Holdings:
    """Remove what came of a patient after the withdrawal, say by a step that had begun before it.

    Args:
        hand: in whose name the scans are claimed; another name than `withdraw` waits for a withdrawal that is
            under way.

    Returns:
        What held the patient when this call began.

    Raises:
        NotFoundError: the patient has not been withdrawn.
        ConflictError, UnavailableError, RefusedError: as `withdraw`.
    """
    known = open_workspace(settings).catalog.withdrawal_of(patient_id)
    if known is None:
        raise NotFoundError(f"no withdrawal of patient {patient_id} in the catalog")
    return _remove(settings, patient_id, known.reason, known.by, hand)


def require_known(found: Holdings) -> None:
    """Raise `NotFoundError` if nothing of the patient was ever here: most likely the id is mistyped."""
    if found.is_empty:
        raise NotFoundError(
            f"nothing of patient {found.patient_id!r} is in the catalog or the source",
            fix="check the id; it is matched whole",
        )


def _remove(settings: Settings, patient_id: str, reason: str, by: str, hand: str = _HAND) -> Holdings:
    workspace = open_workspace(settings)
    catalog = workspace.catalog
    with _in_hand(workspace, f"{hand}:{patient_id}", catalog.scans_of_patient(patient_id)):
        catalog.begin_withdrawal(patient_id, reason, by)
        found = survey(settings, patient_id)
        catalog.note_withdrawn(patient_id, found.items())
        refusals = _delete(workspace.store, found.objects)
        catalog.empty_withdrawn(patient_id)
        for path in found.caches:
            shutil.rmtree(path)
        _put_mlflow_right(workspace, found)
    if refusals:
        raise refusals[0]
    return found


def _delete(store: ObjectStore, infos: Iterable[ObjectInfo]) -> list[RefusedError]:
    """Delete every object that the store lets go, and return why it keeps the others."""
    refusals = []
    for info in infos:
        try:
            store.delete(info.key)
        except RefusedError as error:
            refusals.append(error)
    return refusals


@contextmanager
def _in_hand(workspace: Workspace, owner: str, scans: Sequence[ScanRecord]) -> Iterator[None]:
    """Claim the patient's scans, so that no worker has one; a withdrawal that was cut off is in no way."""
    catalog = workspace.catalog
    try:
        for scan in scans:
            if not catalog.claim(scan.scan_id, owner, workspace.settings.lease_s):
                raise _worked_on(catalog, scan)
        yield
    finally:
        for scan in scans:
            catalog.release(scan.scan_id, owner)


def _worked_on(catalog: Catalog, scan: ScanRecord) -> ConflictError:
    claim = next((one for one in catalog.claims() if one.scan_id == scan.scan_id), None)
    return ConflictError(
        f"a worker has case {scan.case_id} in hand",
        expected="no live claim on the patient's scans",
        got=f"{claim.owner} until {claim.expires_at:%Y-%m-%d %H:%M:%S} UTC" if claim else "a claim",
        fix="nothing was changed; try again when the worker is done or its lease has ended",
    )


def _put_mlflow_right(workspace: Workspace, found: Holdings) -> None:
    for one in found.versions:
        workspace.registry.set_tag(one.version, VERSION_TAG, str(one.withdrawn))
    for trace in found.traces:
        traces.redact(workspace.settings, trace, found.patient_id)
