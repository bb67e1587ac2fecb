"""Withdraw: a patient takes back consent, and everything that holds the patient goes or is marked.

The order makes it safe to stop anywhere and call again: the withdrawal is recorded first, which takes the
scans out of work; then objects go, then rows, then this machine's caches; then MLflow is put right.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from functools import partial

from retroln.catalog.catalog import Catalog
from retroln.catalog.consent import WITHDRAWN
from retroln.catalog.records import Alike, ScanRecord, WithdrawnItem
from retroln.errors import ConflictError, IntegrityError, NotFoundError, RefusedError, UserError
from retroln.settings import Settings
from retroln.steps.case_objects import objects_of
from retroln.steps.claimed import in_hand
from retroln.steps.holdings import Holdings, Roles, survey
from retroln.steps.likeness import require_identified, why_held
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


def withdraw(
    settings: Settings, patient_id: str, *, also: Sequence[str] = (), reason: str, by: str
) -> Holdings:
    """Remove a patient, or finish a withdrawal that was cut off; what is there no more is no error.

    Args:
        also: other patient ids under which the same person is here; they are withdrawn with it.

    Returns:
        What held the patient when this call began.

    Raises:
        UserError: `reason` or `by` is empty, or scans of an older RetroLN cannot be told again yet.
        NotFoundError: nothing of the patient is in the catalog or the source.
        ConflictError: a worker has one of the scans in hand, or the same image or person is here under an id
            that is neither in `also` nor told apart; nothing was changed.
        UnavailableError: a server is away; call again.
        RefusedError: the store keeps an object; everything else is removed.
        IntegrityError: an artifact in MLflow cannot be read; everything else is removed.
    """
    if not (reason.strip() and by.strip()):
        raise UserError(
            "a withdrawal says why and by whom", got="an empty text", fix="give --reason and --by"
        )
    require_identified(settings)
    patients = list(dict.fromkeys([patient_id, *also]))
    found = [survey(settings, one) for one in patients]
    for one in found:
        require_known(one)
    if undecided := undecided_links(found):
        raise _undecided(found[0], undecided)
    return _remove(settings, patients, reason.strip(), by.strip())


def undecided_links(found: Sequence[Holdings]) -> list[Alike]:
    """Other patients who may be the same person as these, of whom nobody has said whether they are."""
    known = {one.patient_id for one in found}
    links = {link.patient_id: link for one in found for link in one.linked if not link.told_apart}
    return [link for other, link in links.items() if other not in known]


def _undecided(found: Holdings, links: Sequence[Alike]) -> ConflictError:
    cases = " ".join(link.case_id for link in links)
    also = " ".join(f"--also {link.patient_id}" for link in links)
    return ConflictError(
        f"patient {found.patient_id} may be here under other ids, too",
        expected="a word on each of them, since a withdrawal has no way back",
        got=", ".join(f"the same {one.what} as case {one.case_id} of {one.patient_id}" for one in links),
        fix=f"if it is the same person, {also}; if it is somebody else, first"
        f" `retroln review different {' '.join(found.cases[:1])} {cases}`",
    )


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
    return _remove(settings, [patient_id], known.reason, known.by, hand)


def require_known(found: Holdings) -> None:
    """Raise `NotFoundError` if nothing of the patient was ever here: most likely the id is mistyped."""
    if found.is_empty:
        raise NotFoundError(
            f"nothing of patient {found.patient_id!r} is in the catalog or the source",
            fix="check the id; it is matched whole",
        )


def _remove(settings: Settings, patients: Sequence[str], reason: str, by: str, hand: str = _HAND) -> Holdings:
    """Withdraw all of these at once, then empty one after the other; returns what held the first."""
    workspace = open_workspace(settings)
    catalog = workspace.catalog
    scans = [scan for patient_id in patients for scan in catalog.scans_of_patient(patient_id)]
    held: list[Holdings] = []
    troubles: list[UserError] = []
    with in_hand(workspace, f"{hand}:{patients[0]}", scans):
        for patient_id in patients:
            why = reason if patient_id == patients[0] else f"{reason} (the same person as {patients[0]})"
            catalog.begin_withdrawal(patient_id, why, by)
        for patient_id in patients:
            held.append(survey(settings, patient_id))
            troubles += _empty(settings, workspace, held[-1])
    if troubles:
        raise troubles[0]
    return held[0]


def _empty(settings: Settings, workspace: Workspace, found: Holdings) -> list[UserError]:
    """Remove what holds a patient who has withdrawn, and return what could not be done."""
    catalog = workspace.catalog
    catalog.note_withdrawn(found.patient_id, found.items())
    troubles: list[UserError] = [*_delete(workspace.store, found.objects)]
    for held in found.held_copies:
        catalog.hold_again(held.scan_id, partial(why_held, held))
    for scan in found.copies:
        troubles += _empty_copy(workspace, scan)
    catalog.empty_withdrawn(found.patient_id)
    for path in found.caches:
        shutil.rmtree(path)
    for dataset in found.datasets:
        try:
            put_mlflow_right(settings, dataset)
        except IntegrityError as error:
            troubles.append(error)
    return troubles


def _empty_copy(workspace: Workspace, scan: ScanRecord) -> list[RefusedError]:
    """Remove a replaced scan of somebody else; while the store keeps an object the row tells of it."""
    workspace.catalog.give_up(scan.scan_id, WITHDRAWN)
    refusals = _delete(workspace.store, list(objects_of(workspace, scan)))
    if not refusals:
        workspace.catalog.empty_revision(scan.scan_id, WITHDRAWN)
    return refusals


def _delete(store: ObjectStore, infos: Iterable[ObjectInfo]) -> list[RefusedError]:
    """Delete every object that the store lets go, and return why it keeps the others."""
    refusals = []
    for info in infos:
        try:
            store.delete(info.key)
        except RefusedError as error:
            refusals.append(error)
    return refusals


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
