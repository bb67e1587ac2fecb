"""Withdraw: a patient takes back consent, and everything that holds the patient goes or is marked.

The order makes it safe to stop anywhere and call again: the withdrawal is recorded first, which takes the
scans out of work; then objects go, then rows, then this machine's caches; then MLflow is put right.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from retroln.catalog.catalog import Catalog
from retroln.catalog.records import ScanRecord, WithdrawnItem
from retroln.errors import ConflictError, IntegrityError, NotFoundError, RefusedError, UserError
from retroln.settings import Settings
from retroln.steps.holdings import Holdings, Roles, survey, survey_id
from retroln.steps.promote import DATASET_TAG
from retroln.steps.workspace import Workspace, open_workspace
from retroln.storage.base import ObjectInfo, ObjectStore
from retroln.tracking import traces
from retroln.tracking.traces import FoundRun

VERSION_TAG = "withdrawn.patients"
"""Tag of a model version: how many patients of its training and test set have taken back consent.

On a training run that has ended it says for how many its artifacts were looked through.
"""
_HAND = "withdraw"


def withdraw(settings: Settings, patient_id: str, *, reason: str, by: str) -> Holdings:
    """Remove a patient, or finish a withdrawal that was cut off; what is there no more is no error.

    Other patient ids under which the same person, or an image of the patient, is here are withdrawn with it,
    unless somebody said that these are other people.

    Returns:
        What held the patient when this call began.

    Raises:
        UserError: `reason` or `by` is empty.
        NotFoundError: nothing of the patient is in the catalog or the source.
        ConflictError: a worker has one of the scans in hand; nothing was changed.
        UnavailableError: a server is away; call again.
        RefusedError: the store keeps an object; everything else is removed.
        IntegrityError: an artifact in MLflow cannot be read; everything else is removed.
    """
    if not (reason.strip() and by.strip()):
        raise UserError(
            "a withdrawal says why and by whom", got="an empty text", fix="give --reason and --by"
        )
    found = survey(settings, patient_id)
    require_known(found)
    removed, troubles = [], []
    for one in (found, *found.also):
        why = reason.strip() + ("" if one is found else f" (the same person as {patient_id})")
        try:
            removed.append(_remove(settings, one.patient_id, why, by.strip()))
        except (RefusedError, IntegrityError) as error:  # it is withdrawn all the same, and so are the others
            troubles.append(error)
    if troubles:
        raise troubles[0]
    return replace(removed[0], also=tuple(removed[1:]))


def finish(settings: Settings, patient_id: str, *, hand: str = _HAND) -> Holdings:
    """Remove what came of a patient after the withdrawal, say by a step that had begun before it.

    Args:
        hand: in whose name the scans are claimed; another name than `withdraw` waits for a withdrawal that is
            under way.

    Returns:
        What held the patient when this call began.

    Raises:
        NotFoundError: the patient has not been withdrawn.
        ConflictError, UnavailableError, RefusedError, IntegrityError: as `withdraw`.
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
        found = survey_id(settings, patient_id)
        catalog.note_withdrawn(patient_id, found.items())
        troubles: list[UserError] = [*_delete(workspace.store, found.objects)]
        catalog.empty_withdrawn(patient_id)
        for path in found.caches:
            shutil.rmtree(path)
        for dataset in found.datasets:
            try:
                put_mlflow_right(settings, dataset)
            except IntegrityError as error:
                troubles.append(error)
    if troubles:
        raise troubles[0]
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


def put_mlflow_right(settings: Settings, dataset: str) -> int:
    """Mark the models of a tombstoned dataset version, and take who withdrew out of the runs on it.

    Whoever writes to MLflow of a dataset version calls it afterwards: it finds every withdrawal that did not
    see what was written. What is right is left alone.

    Returns:
        How many model versions were marked and artifacts redacted; 0 while all patients consent.

    Raises:
        IntegrityError: an artifact cannot be read; everything else is put right.
    """
    workspace = open_workspace(settings)
    withdrawn = _withdrawn_members(workspace.catalog, dataset)
    if not withdrawn:
        return 0
    changed, unread = _mark_models(workspace, dataset, withdrawn), []
    for run in traces.runs_tagged(settings, DATASET_TAG, dataset):
        try:
            changed += _redact(workspace, run, withdrawn)
        except IntegrityError as error:
            unread.append(error)
    if unread:
        raise unread[0]
    return changed


def _withdrawn_members(catalog: Catalog, dataset: str) -> Roles:
    """Role of each patient of a dataset version who has withdrawn."""
    withdrawn, roles = catalog.withdrawn_patients(), Roles()
    for member in catalog.dataset(dataset).members:
        if member.patient_id in withdrawn:
            roles[member.patient_id] = tuple({*roles.get(member.patient_id, ()), member.role})
    return roles


def _mark_models(workspace: Workspace, dataset: str, withdrawn: Roles) -> int:
    number = str(len(withdrawn))
    models = [one for one in workspace.registry.versions() if one.tags.get(DATASET_TAG) == dataset]
    unmarked = [one.version for one in models if one.tags.get(VERSION_TAG) != number]
    for version in unmarked:
        for patient_id, roles in withdrawn.items():
            item = WithdrawnItem("version", str(version), "marked", "+".join(roles))
            workspace.catalog.note_withdrawn(patient_id, [item])
        workspace.registry.set_tag(version, VERSION_TAG, number)
    return len(unmarked)


def _redact(workspace: Workspace, run: FoundRun, withdrawn: Roles) -> int:
    """Take patients out of a run's artifacts, unless the run ended and says that it was done for all."""
    settings, number, redacted = workspace.settings, str(len(withdrawn)), 0
    if not run.under_way and run.tags.get(VERSION_TAG) == number:
        return 0
    for patient_id in withdrawn:
        for trace in traces.traces(settings, run.run_id, patient_id):
            item = WithdrawnItem("artifact", f"{trace.run_id}/{trace.path}", "redacted")
            workspace.catalog.note_withdrawn(patient_id, [item])
            traces.redact(settings, trace, patient_id)
            redacted += 1
    if not (run.under_way or run.in_trash):
        traces.set_tag(settings, run.run_id, VERSION_TAG, number)
    return redacted
