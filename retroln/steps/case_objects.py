"""Which stored objects are a patient's, by their keys, and what becomes of those made after a withdrawal.

`scans/<case>/<source>/`, `crops/<case>/<source>-<region>/` and `predictions/<model>/<case>/<source>/` name
the case and, by a hash that holds the patient's id, the revision.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from retroln.catalog.catalog import Catalog
from retroln.catalog.records import ScanRecord, WithdrawnItem
from retroln.errors import RefusedError, UnavailableError, WithdrawnError
from retroln.steps.workspace import Workspace
from retroln.storage.base import ObjectInfo

SHORT = 16
"""Hex digits of a hash in keys."""
_PLACES = {"scans": 1, "crops": 1, "predictions": 2}
"""Where in a key the case stands, by the key's first part."""

Place = tuple[str, str]
"""A case id and the first digits of a source hash."""

log = logging.getLogger(__name__)


def source_of(scan: ScanRecord) -> str:
    """What names the scan's revision in keys."""
    return str(scan.source_sha256)[:SHORT]


def place_of(key: str) -> Place | None:
    """Case and source of a case's object; None for any other."""
    parts = key.split("/")
    at = _PLACES.get(parts[0])
    if at is None or len(parts) < at + 3:
        return None
    return parts[at], parts[at + 1].split("-")[0]


@dataclass(frozen=True)
class Ownership:
    """Whose the objects under a patient's case ids are.

    Attributes:
        own: places that the catalog, or the withdrawal's record, knows as the patient's.
        others: places that it knows as another patient's.
        shared: case ids that a patient who did not withdraw has or had as well. What nobody's record
            knows under these may be in the making, so it is not the patient's.
    """

    cases: frozenset[str]
    own: frozenset[Place]
    others: frozenset[Place]
    shared: frozenset[str]

    @classmethod
    def of(cls, catalog: Catalog, patient_id: str, cases: Sequence[str]) -> Self:
        """Ask the catalog; `cases` are the patient's case ids."""
        recorded = {
            (scan.case_id, source_of(scan))
            for scan in catalog.scans_of_patient(patient_id)
            if scan.source_sha256
        }
        begun = {(case, sha256[:SHORT]) for case, sha256 in catalog.intakes_of(patient_id)}
        noted = {place_of(item.name) for item in catalog.withdrawn_items(patient_id) if item.kind == "object"}
        others = {(case, sha256[:SHORT]) for case, sha256 in catalog.sources_of_others(patient_id, cases)}
        return cls(
            cases=frozenset(cases),
            own=frozenset(recorded | begun | {place for place in noted if place}),
            others=frozenset(others),
            shared=catalog.shared_cases(patient_id, cases),
        )

    def has(self, key: str) -> bool:
        """Whether the object is the patient's."""
        place = place_of(key)
        if place is None or place[0] not in self.cases or place in self.others:
            return False
        return place[0] not in self.shared or place in self.own


def cases_of(catalog: Catalog, patient_id: str) -> tuple[str, ...]:
    """The patient's case ids, those of which ingest recorded nothing included."""
    recorded = [scan.case_id for scan in catalog.scans_of_patient(patient_id)]
    return tuple(dict.fromkeys([*recorded, *(case for case, _ in catalog.intakes_of(patient_id))]))


def objects_below(
    workspace: Workspace, ownership: Ownership, prefixes: Iterable[str]
) -> Iterator[ObjectInfo]:
    """The patient's objects under the prefixes."""
    for prefix in prefixes:
        yield from (info for info in workspace.store.list(prefix) if ownership.has(info.key))


def objects_of(workspace: Workspace, scan: ScanRecord) -> Iterator[ObjectInfo]:
    """What is stored of a revision that was given up, results included, but for what another one goes by.

    That may be its label map, or all of it where the same bytes came again.
    """
    used = workspace.catalog.keys_in_use(scan.case_id)
    if f"scans/{scan.case_id}/{source_of(scan)}/ct.nii.gz" in used:
        return
    spared = {name for key in used for name in (key, facts_key(key))}
    for prefix in (f"scans/{scan.case_id}/", f"crops/{scan.case_id}/", "predictions/"):
        for info in workspace.store.list(prefix):
            if place_of(info.key) == (scan.case_id, source_of(scan)) and info.key not in spared:
                yield info


def facts_key(vertebrae_key: str) -> str:
    """Key of what one label map cannot hold: how far delivered levels overlapped, where a 12th rib starts."""
    return vertebrae_key.removesuffix(".nii.gz") + ".json"


def remove(workspace: Workspace, patient_id: str, infos: Iterable[ObjectInfo]) -> int:
    """Note objects in the patient's withdrawal, then delete them; returns how many.

    Raises:
        NotFoundError: the patient has no withdrawal.
    """
    doomed = list(infos)
    items = [WithdrawnItem("object", info.key, "deleted") for info in doomed]
    workspace.catalog.note_withdrawn(patient_id, items)
    for info in doomed:
        workspace.store.delete(info.key)
    return len(doomed)


@contextmanager
def taking_back(workspace: Workspace, scan: ScanRecord, *prefixes: str) -> Iterator[None]:
    """Leave nothing under the scan's prefixes if the block fails and its patient has withdrawn.

    A step puts its objects first and records them last. When the patient withdraws in between, the record is
    refused: this removes the objects. What a process that dies there leaves, `withdraw.sweep` removes.

    Args:
        prefixes: where the block writes; each names case and source of the scan, so all below is its own.

    Raises:
        WithdrawnError: in place of the block's error, when the patient has withdrawn.
    """
    try:
        yield
    except Exception as error:
        with suppress(UnavailableError, RefusedError):  # no answer: the block's own error counts
            if workspace.catalog.withdrawal_of(scan.patient_id):
                _take_back(workspace, scan, prefixes)
                raise _withdrawn(scan) from error
        raise


def _take_back(workspace: Workspace, scan: ScanRecord, prefixes: Sequence[str]) -> None:
    found = [info for prefix in prefixes for info in workspace.store.list(prefix)]
    number = remove(workspace, scan.patient_id, found)
    log.warning("the patient of %s withdrew meanwhile; %d objects are removed again", scan.case_id, number)


def _withdrawn(scan: ScanRecord) -> WithdrawnError:
    return WithdrawnError(
        f"the patient of case {scan.case_id} took back consent meanwhile",
        fix="nothing of it is kept or recorded",
    )
