"""A person looks at landmarks that hold a case back, and accepts or corrects them.

What was said stands in the catalog for good, with who and why. It holds for one revision of a case: changed
source bytes make a new revision, which is judged anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retroln.anatomy import landmarks, roi
from retroln.anatomy.vertebrae import Vertebrae
from retroln.catalog.landmark_reviews import Held
from retroln.catalog.records import (
    LandmarkReviewDraft,
    LandmarkReviewRecord,
    LandmarksRecord,
    ScanRecord,
)
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError, LandmarkError, NotFoundError, naming
from retroln.files import sha256_file
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid, require_same_grid
from retroln.imaging.volume import Volume
from retroln.report.cautions import case_cautions, cautions
from retroln.settings import LabelScheme, Settings
from retroln.steps import landmark_queue
from retroln.steps.case_objects import facts_key, source_of, taking_back
from retroln.steps.claimed import in_hand
from retroln.steps.ingest import spine_facts
from retroln.steps.words import Words
from retroln.steps.workspace import Workspace, open_workspace


@dataclass(frozen=True)
class Point:
    """L2 placed by hand, RAS+ world mm.

    Attributes:
        l2_world_mm: the middle of its front surface.
        extent_world_mm: heights of the lower end of L5 and the upper end of T12; None takes the labels'.
    """

    l2_world_mm: tuple[float, float, float]
    extent_world_mm: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What a person needs to judge a case's landmarks.

    Attributes:
        landmarks: numbers and findings of the last prepare; None before it.
        cautions: what is to be said of them and of the region, if there is one.
        words: what people said before, every revision, oldest first.
        picture: PNG of the levels on the CT.
    """

    scan: ScanRecord
    landmarks: LandmarksRecord | None
    cautions: tuple[str, ...]
    words: tuple[LandmarkReviewRecord, ...]
    picture: bytes


@dataclass(frozen=True)
class Ruled:
    """A word that was taken down.

    Attributes:
        word: as it stands in the catalog.
        still_held: why prepare will hold the case again under it; None if it will go on.
        cautions: what is to be said of the region that prepare will cut under it.
    """

    word: LandmarkReviewRecord
    still_held: str | None = None
    cautions: tuple[str, ...] = ()


def queue(settings: Settings) -> list[Held]:
    """Cases that are held for their landmarks, the least trusted first."""
    return open_workspace(settings).catalog.landmark_queue()


def look(settings: Settings, case_id: str) -> Look:
    """Numbers, findings and a fresh picture of a case, held or not.

    Raises:
        NotFoundError: no such case, or no CT of it is stored.
    """
    workspace = open_workspace(settings)
    scan = _stored_scan(workspace, case_id)
    with workspace.scratch() as folder:
        ct, spine = _ct(workspace, scan, folder), _spine(workspace, scan, folder)
    remark = scan.reason if scan.state is ScanState.QUARANTINED else None
    history = workspace.catalog.case_history(case_id)
    return Look(
        scan=scan,
        landmarks=history.landmarks,
        cautions=tuple(case_cautions(history)),
        words=tuple(workspace.catalog.landmark_reviews(case_id)),
        picture=landmark_queue.picture(scan, ct, spine or landmark_queue.unlabelled(scan), remark),
    )


def accept(settings: Settings, case_id: str, words: Words) -> Ruled:
    """Let the landmarks count as labelled and send the case on.

    Raises:
        UserError: reviewer or comment is empty.
        NotFoundError: no such case.
        LandmarkError: they cannot place a region even so; it takes a correction.
        ConflictError: the case is not held for its landmarks, or a worker has it in hand.
    """
    workspace, words = open_workspace(settings), words.complete()
    scan = _stored_scan(workspace, case_id)
    with workspace.scratch() as folder:
        ct, spine = _ct(workspace, scan, folder), _spine(workspace, scan, folder)
    if spine is None:
        raise ConflictError(
            f"case {case_id} has no landmarks that could be accepted",
            expected="a vertebra label map",
            got="none",
            fix="`retroln review correct` with --vertebrae, or with --l2 and --extent",
        )
    ruling = landmarks.Ruling(**vars(words), accepted=True)
    with naming(case_id):
        said = _said(settings, landmarks.assess(spine, unanchored="accept", ct=ct, ruling=ruling))
    return Ruled(_written(workspace, scan, _draft(scan, "accept", words)), cautions=said)


def correct_by_map(
    settings: Settings, case_id: str, words: Words, labels: Path, label_ids: LabelScheme
) -> Ruled:
    """Put a corrected label map (or a folder of levels) in the place of the present one.

    Raises:
        UserError, NotFoundError, ConflictError: as `accept`.
        InputError, GeometryError: the labels cannot be read, or lie on another grid than the CT.
        LandmarkError: they hold no level at all.
        WithdrawnError: the patient withdrew meanwhile; the labels are not kept.
    """
    workspace, words = open_workspace(settings), words.complete()
    scan = _stored_scan(workspace, case_id)
    grid = Grid(scan.shape, np.asarray(scan.affine, float))
    spine = Vertebrae.read(labels, label_ids)
    require_same_grid(grid, spine.grid, what="vertebra label map", file=labels)
    with taking_back(workspace, scan, _base(scan)), workspace.scratch() as folder:
        ct = _ct(workspace, scan, folder)
        held, said = _foreseen(settings, spine, ct, landmarks.Ruling(**vars(words)))
        if not spine.levels and held:
            raise held
        key = _store(workspace, scan, spine, grid, folder)
        word = _written(workspace, scan, _draft(scan, "correct", words, vertebrae_key=key))
    return Ruled(word, str(held) if held else None, said)


def correct_by_point(settings: Settings, case_id: str, words: Words, point: Point) -> Ruled:
    """Place L2 by hand.

    Raises:
        UserError, NotFoundError, ConflictError: as `accept`.
        LandmarkError: the point lies outside the scan, no T12-L5 lies as the extent says, or none is given
            and the labels cannot say how far T12-L5 reach; or the CT is not in HU, which takes `accept`.
    """
    workspace, words = open_workspace(settings), words.complete()
    scan = _stored_scan(workspace, case_id)
    with workspace.scratch() as folder:
        ct = _ct(workspace, scan, folder)
        spine = _spine(workspace, scan, folder) or landmark_queue.unlabelled(scan)
    ruling = landmarks.Ruling(**vars(words), **vars(point))
    with naming(case_id):
        said = _said(settings, landmarks.assess(spine, unanchored="accept", ct=ct, ruling=ruling))
    draft = _draft(scan, "correct", words, **vars(point))
    return Ruled(_written(workspace, scan, draft), cautions=said)


def _stored_scan(workspace: Workspace, case_id: str) -> ScanRecord:
    scan = workspace.catalog.current_scan(case_id)
    if scan is None or scan.ct_key is None:
        raise NotFoundError(
            f"no CT of case {case_id!r} is stored",
            fix="`retroln review list` names the cases that wait; ids match whole",
        )
    return scan


def _ct(workspace: Workspace, scan: ScanRecord, folder: Path) -> Volume:
    workspace.store.get_file(str(scan.ct_key), folder / "ct.nii.gz")
    return nifti.read(folder / "ct.nii.gz")


def _spine(workspace: Workspace, scan: ScanRecord, folder: Path) -> Vertebrae | None:
    if scan.vertebrae_key is None:
        return None
    return landmark_queue.stored_vertebrae(workspace, scan.vertebrae_key, folder)


def _foreseen(
    settings: Settings, spine: Vertebrae, ct: Volume, ruling: landmarks.Ruling
) -> tuple[LandmarkError | None, tuple[str, ...]]:
    """What prepare will say against the landmarks under a ruling, or of the region that it will cut."""
    try:
        assessment = landmarks.assess(spine, unanchored=settings.unanchored, ct=ct, ruling=ruling)
        return None, _said(settings, assessment)
    except LandmarkError as error:
        return error, ()


def _said(settings: Settings, assessment: landmarks.Assessment) -> tuple[str, ...]:
    """What is to be said of the region. Raises `LandmarkError` if it misses the scan."""
    region = roi.locate(assessment.vertebrae, assessment, settings.roi)
    return tuple(cautions(assessment, region.clamped_sides))


def _base(scan: ScanRecord) -> str:
    return f"scans/{scan.case_id}/{source_of(scan)}/"


def _store(workspace: Workspace, scan: ScanRecord, spine: Vertebrae, grid: Grid, folder: Path) -> str:
    """Key of the corrected label map, in RAS+ and TotalSegmentator v2 ids, named by its content."""
    path = folder / "corrected.nii.gz"
    nifti.write(path, spine.to_label_map(), grid)
    key = f"{_base(scan)}vertebrae-{sha256_file(path)[:16]}.nii.gz"
    workspace.store.put_file(path, key)
    workspace.store.put_bytes(spine_facts(spine), facts_key(key))
    return key


def _written(workspace: Workspace, scan: ScanRecord, draft: LandmarkReviewDraft) -> LandmarkReviewRecord:
    """The word as it stands in the catalog; no prepare is under way that would not go by it."""
    with in_hand(workspace, f"review:{scan.case_id}", [scan]):
        return workspace.catalog.review_landmarks(draft)


def _draft(scan: ScanRecord, action: str, words: Words, **given: Any) -> LandmarkReviewDraft:
    return LandmarkReviewDraft(scan_id=scan.scan_id, action=action, **vars(words), **given)
