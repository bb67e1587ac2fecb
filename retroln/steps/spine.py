"""The vertebrae of a scan: as delivered, or made by TotalSegmentator when settings say so."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retroln.anatomy import totalseg
from retroln.anatomy.totalseg_weights import Weights
from retroln.anatomy.vertebrae import Vertebrae
from retroln.catalog.records import LandmarkReviewRecord, ScanRecord
from retroln.errors import LandmarkError, NotFoundError
from retroln.files import sha256_json
from retroln.imaging import nifti
from retroln.imaging.volume import Volume
from retroln.settings import Settings, TotalSegSpec
from retroln.steps import weights, weights_copy
from retroln.steps.case_objects import facts_key
from retroln.steps.ingest import spine_facts
from retroln.steps.landmark_queue import stored_vertebrae, unlabelled
from retroln.steps.workspace import Workspace

Source = Literal["provided", "totalseg", "reviewer"]

_SHORT = 16  # hex digits of a hash in keys


@dataclass(frozen=True, eq=False)
class Spine:
    """Vertebrae of a scan and where they came from.

    Attributes:
        source: as the catalog records it.
        key: of the label map in the store when it was made here, else None.
        name: what a message calls the label map.
        findings: `code: text`, what was done to find them.
    """

    vertebrae: Vertebrae
    source: Source
    key: str | None
    name: str
    findings: tuple[str, ...] = ()


def check_weights(settings: Settings) -> None:
    """Before a run: raise what keeps TotalSegmentator from being used although settings ask for it.

    Errors are those of `weights.require`. Looks into the store alone, so it can be called where no case will
    be done.
    """
    if settings.landmarks == "totalseg":
        weights.require(settings)


def bring_weights(settings: Settings) -> None:
    """Before the first case on a machine: bring the weights there and check them.

    Errors are those of `weights_copy.fetch`.
    """
    if settings.landmarks == "totalseg":
        weights_copy.fetch(settings)


def spine_of(
    workspace: Workspace, scan: ScanRecord, ct: Volume, folder: Path, word: LandmarkReviewRecord | None
) -> Spine:
    """The scan's vertebrae; labels that were delivered are taken whatever the settings say.

    Labels of which a person has spoken are the ones that person saw. Labels that were made before, with the
    same weights and options, are taken from the store. When TotalSegmentator is not to be used any more, a
    scan keeps the labels that it was prepared with.

    Args:
        ct: the scan's canonical CT.
        folder: scratch.
        word: what a person said of the scan's landmarks, if anybody did.

    Raises:
        LandmarkError: `landmarks_missing`, or as `totalseg_vertebrae.segment`.
    """
    key, delivered = scan.vertebrae_key, scan.source_uri.get("vertebrae")
    if key is None and word and word.l2_world_mm and word.extent_world_mm:
        return Spine(unlabelled(scan), "reviewer", None, scan.case_id)
    if key is None or not (word or delivered):
        if workspace.settings.landmarks == "totalseg":
            return _totalseg(workspace, scan, ct, folder)
        if key is None:
            raise _missing(scan)
    vertebrae, findings = _stored(workspace, key, folder)
    source: Source = (
        "reviewer" if word and word.action == "correct" else "provided" if delivered else "totalseg"
    )
    return Spine(vertebrae, source, None, delivered or key, findings)


def _missing(scan: ScanRecord) -> LandmarkError:
    return LandmarkError(
        "the case came without vertebra labels",
        reason="landmarks_missing",
        file=scan.case_id,
        expected="a vertebra label map or a folder vertebrae_<LEVEL>.nii.gz",
        got="none",
        fix="deliver one beside the CT (TotalSegmentator task total writes it), or have it made here with"
        " RETROLN_LANDMARKS=totalseg and `retroln requeue CASE`",
    )


def _totalseg(workspace: Workspace, scan: ScanRecord, ct: Volume, folder: Path) -> Spine:
    copy = weights_copy.fetch(workspace.settings)
    key = _key(workspace.settings.totalseg, scan, copy)
    try:
        vertebrae, findings = _stored(workspace, key, folder)
    except NotFoundError:
        vertebrae, findings = _make(workspace, ct, copy, key, folder)
    return Spine(vertebrae, "totalseg", key, key, findings)


def _key(spec: TotalSegSpec, scan: ScanRecord, copy: Weights) -> str:
    """Beside the scan, under all that decides the labels."""
    decides = sha256_json(
        [copy.sha256, spec.quality, spec.ribs, spec.refine, totalseg.VERSION, *spec.added()]
    )
    base = f"scans/{scan.case_id}/{scan.source_sha256[:_SHORT]}"
    return f"{base}/totalseg-{decides[:_SHORT]}/vertebrae.nii.gz"


def _stored(workspace: Workspace, key: str, folder: Path) -> tuple[Vertebrae, tuple[str, ...]]:
    """Labels that lie in the store, with the findings of those that made them. Raises `NotFoundError`."""
    facts = json.loads(workspace.store.get_bytes(facts_key(key)))
    return stored_vertebrae(workspace, key, folder), tuple(facts.get("findings", ()))


def _make(
    workspace: Workspace, ct: Volume, copy: Weights, key: str, folder: Path
) -> tuple[Vertebrae, tuple[str, ...]]:
    """Let TotalSegmentator make the labels; the facts are stored last, so that both or none are found."""
    from retroln.anatomy.totalseg_vertebrae import segment

    spec = workspace.settings.totalseg
    found = segment(ct, copy, spec)
    made = f"made: by TotalSegmentator {totalseg.VERSION}, {spec.quality}, weights {copy.sha256[:_SHORT]}"
    findings = (made, *found.findings)
    path = folder / "made.nii.gz"
    nifti.write(path, found.vertebrae.to_label_map(), ct.grid)
    workspace.store.put_file(path, key)
    workspace.store.put_bytes(spine_facts(found.vertebrae, findings=findings), facts_key(key))
    return found.vertebrae, findings
