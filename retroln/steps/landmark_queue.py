"""Cases that wait for a look at their landmarks: how one is held, and what a person's word means for it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retroln.anatomy import landmarks
from retroln.anatomy.vertebrae import Vertebrae
from retroln.catalog.records import LandmarkReviewRecord, LandmarksDraft, ScanRecord
from retroln.errors import LandmarkError
from retroln.files import sha256_bytes
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.steps.case_objects import facts_key
from retroln.steps.workspace import Workspace

NO_RUNG = "none"

log = logging.getLogger(__name__)


def ruling_of(word: LandmarkReviewRecord | None) -> landmarks.Ruling | None:
    """What the word that holds for a scan means to the gate of landmarks."""
    if word is None:
        return None
    return landmarks.Ruling(
        reviewer=word.reviewer,
        comment=word.comment,
        accepted=word.action == "accept",
        l2_world_mm=word.l2_world_mm,
        extent_world_mm=word.extent_world_mm,
    )


def stored_vertebrae(workspace: Workspace, key: str, folder: Path) -> Vertebrae:
    """A label map of the store with the facts that lie beside it."""
    path = folder / key.rsplit("/", 1)[-1]
    workspace.store.get_file(key, path)
    spine = Vertebrae.from_label_map(nifti.read(path), "totalseg-v2")
    return spine.with_facts(json.loads(workspace.store.get_bytes(facts_key(key))))


def unlabelled(scan: ScanRecord) -> Vertebrae:
    """No level at all on the scan's grid."""
    grid = Grid(scan.shape, np.asarray(scan.affine, float))
    return Vertebrae(grid, {}, 0, Grid(scan.source_shape, np.asarray(scan.source_affine, float)))


@dataclass(frozen=True, eq=False)
class Seen:
    """What prepare had in hand when it refused the landmarks of a scan.

    Attributes:
        ct: the canonical CT.
        spine: the levels on its grid; None when there are none.
        source: where these came from, as the catalog records it.
        vertebrae_key: of a label map that was made for the scan; None leaves the present one.
    """

    ct: Volume
    spine: Vertebrae | None = None
    source: str = "provided"
    vertebrae_key: str | None = None


def hold(
    workspace: Workspace, scan: ScanRecord, error: LandmarkError, seen: Seen, run_id: int | None
) -> None:
    """Quarantine a scan for `error`, with the numbers and a picture of its landmarks."""
    levels = seen.spine or unlabelled(scan)
    account = landmarks.account_of(levels, error, seen.ct)
    draft = LandmarksDraft(
        source=seen.source,
        label_ids=scan.label_ids,
        rung=NO_RUNG,
        anchored=account.anchored,
        truncated=[level.value for level in account.truncated],
        findings=list(account.findings),
        levels=account.per_level,
        confidence=account.confidence,
        picture_key=_store_picture(workspace, scan, seen.ct, levels, error),
    )
    workspace.catalog.hold_landmarks(
        scan.scan_id, error.reason, str(error), draft, run_id, vertebrae_key=seen.vertebrae_key
    )


def picture(scan: ScanRecord, ct: Volume, spine: Vertebrae, remark: str | None) -> bytes:
    """PNG of the levels on the CT, titled with case, revision and remark."""
    from retroln.report.spine_picture import spine_picture

    title = f"{scan.case_id}, revision {scan.revision}" + (f": {remark}" if remark else "")
    return spine_picture(ct, spine, title=title)


def _store_picture(
    workspace: Workspace, scan: ScanRecord, ct: Volume, spine: Vertebrae, error: LandmarkError
) -> str | None:
    """Key of the picture; None if it could not be drawn, which must not keep the case from its queue."""
    try:
        content = picture(scan, ct, spine, error.reason)
    except Exception:
        log.warning("no picture of %s; `retroln review show` draws it anew", scan.case_id, exc_info=True)
        return None
    key = f"scans/{scan.case_id}/{scan.source_sha256[:16]}/landmarks-{sha256_bytes(content)[:16]}.png"
    workspace.store.put_bytes(content, key)
    return key
