"""One image under two patients, one person under two ids: told by what they are, not by their names."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

from retroln.catalog.consent import WITHDRAWN
from retroln.catalog.likeness import REASONS, SAME_IMAGE, SAME_PERSON
from retroln.catalog.records import Alike, Mark, ScanRecord
from retroln.errors import InputError, UserError
from retroln.imaging import nifti
from retroln.imaging.likeness import sketch, slice_digests
from retroln.imaging.volume import Volume
from retroln.settings import Settings
from retroln.steps.entry import CaseEntry
from retroln.steps.words import Words
from retroln.steps.workspace import Workspace, open_catalog, open_workspace

TOLD_APART = "told_apart"
"""Reason of the event that lets a case go on since a person said that it is of somebody else."""
_UIDS = {"object": "00080018", "series": "0020000E", "study": "0020000D"}
_SAYS = {
    "slice": "{} slices with the same voxels",
    "object": "{} objects of the same SOPInstanceUID",
    "series": "the SeriesInstanceUID",
    "study": "the StudyInstanceUID",
    "person": "the PatientID of the headers",
}


def marks_of(ct: Volume, record: Mapping[str, Any] | None, persons: Collection[str]) -> frozenset[Mark]:
    """By what a scan is told again.

    Args:
        ct: the canonical CT in HU.
        record: `series.json`, whose UIDs are keyed; None for a CT that came as NIfTI.
        persons: keyed names of the person.
    """
    marks = {Mark("slice", digest) for digest in slice_digests(ct)}
    marks |= {Mark("person", name) for name in persons}
    for kind, tag in _UIDS.items():
        uids = {
            uid for one in (record or {}).get("instances", ()) for uid in one.get(tag, {}).get("Value", ())
        }
        marks |= {Mark(kind, uid) for uid in sketch(uids)}
    return frozenset(marks)


def alike_error(entry: CaseEntry, found: Alike) -> InputError:
    """Why a case is not taken in: its image, or its person, is another patient's already."""
    shared = ", ".join(_SAYS[kind].format(number) for kind, number in found.shared.items())
    if found.withdrawn:
        return InputError(
            f"the {found.what} is that of a patient who took back consent",
            reason=WITHDRAWN,
            file=entry.ct,
            expected="no delivery of this patient, under whatever id",
            got=f"{shared} in common with case {found.case_id}",
            fix=f"delete it from the source; {_different(entry.case_id, found.case_id)}",
        )
    return InputError(
        f"the same {found.what} is here as case {found.case_id} of another patient",
        reason=SAME_IMAGE if found.same_image else SAME_PERSON,
        file=entry.ct,
        expected="every image and every person under one patient id",
        got=f"patient {entry.patient_id} here, {found.patient_id} there, with {shared} in common",
        fix="deliver both cases under one patient id, or one of them not at all (if that one was filed"
        f" wrongly, {retiring(found.case_id, found.patient_id)}); {_different(entry.case_id, found.case_id)}",
    )


def retiring(case_id: str, patient_id: str) -> str:
    """The command that takes back a case that was filed wrongly."""
    return f"`retroln review retire {case_id} --patient {patient_id} --reviewer WHO --comment WHY`"


def _different(case_id: str, other: str) -> str:
    if case_id == other:
        return "if these are two people, give it a case id of its own first"
    return (
        f"if these are two people, `retroln review different {case_id} {other} --reviewer WHO --comment WHY`"
    )


def require_identified(settings: Settings) -> None:
    """Raise `UserError` while scans of an older RetroLN cannot be told again under another patient's id."""
    if number := open_catalog(settings).count_unmarked():
        raise UserError(
            f"{number} scans of an older RetroLN would not be told again under another patient's id",
            expected="marks of identity for every scan",
            got=f"none for {number}",
            fix="run `retroln catalog identify` once",
        )


def identify(settings: Settings) -> dict[str, str]:
    """Mark what an older RetroLN took in, oldest first, and hold what is another patient's already.

    Of a CT that came as DICOM the PatientID is not kept, so a person is told by study and series alone.

    Returns:
        Reason of each case that is held now ("" for one that is not), by case id.
    """
    workspace, done = open_workspace(settings), {}
    for scan in workspace.catalog.unmarked_scans():
        marks = _stored_marks(workspace, scan)
        found = workspace.catalog.mark_scan(scan.scan_id, marks, partial(why_held, scan))
        done[scan.case_id] = why_held(scan, found)[0] if found else ""
    return done


def why_held(scan: ScanRecord, found: Alike) -> tuple[str, str]:
    """Reason and detail of a stored scan that is held for its likeness."""
    entry = CaseEntry(scan.case_id, scan.patient_id, scan.source_uri.get("ct", scan.case_id))
    error = alike_error(entry, found)
    return error.reason, str(error)


def _stored_marks(workspace: Workspace, scan: ScanRecord) -> frozenset[Mark]:
    with workspace.scratch() as folder:
        workspace.store.get_file(str(scan.ct_key), folder / "ct.nii.gz")
        ct = nifti.read(folder / "ct.nii.gz")
    record = json.loads(workspace.store.get_bytes(scan.series_key)) if scan.series_key else None
    persons = {scan.patient_id} if workspace.settings.identity == "pseudonym" else set()
    return marks_of(ct, record, persons)


def unlike(settings: Settings, case_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of these cases of which nothing is known that they have in common: perhaps an id is mistyped."""
    catalog = open_workspace(settings).catalog
    scans = sorted(catalog.current_scans(case_ids).values(), key=lambda scan: scan.case_id)
    alike = {pair[:2] for pair in catalog.members_alike([scan.scan_id for scan in scans])}
    held = {one.case_id for one in catalog.held_deliveries() if one.reason in REASONS}
    return [
        (one.case_id, other.case_id)
        for one, other in combinations(scans, 2)
        if (min(one.patient_id, other.patient_id), max(one.patient_id, other.patient_id)) not in alike
        and held.isdisjoint((one.case_id, other.case_id))
    ]


def tell_apart(settings: Settings, case_ids: Sequence[str], reviewer: str, comment: str) -> list[str]:
    """Write down that these cases are of different people, and take up those that were held for it.

    Raises:
        UserError: reviewer or comment is empty.
        NotFoundError, ConflictError: as `Catalog.rule_different`.
    """
    catalog, words = open_workspace(settings).catalog, Words(reviewer, comment).complete("patients")
    held = catalog.rule_different(case_ids, words.reviewer, words.comment)
    others = ", ".join(sorted(case_ids))
    for case_id in held:
        catalog.requeue(
            case_id, TOLD_APART, f"{others} are different people, by {words.reviewer}: {words.comment}"
        )
    return held
