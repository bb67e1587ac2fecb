"""Prepare: landmarks, plausibility, region and crop of every ingested scan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from retroln.anatomy import landmarks, roi
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.records import (
    CropDraft,
    LandmarksDraft,
    RoiDraft,
    ScanRecord,
)
from retroln.catalog.states import ScanState
from retroln.errors import InputError, LandmarkError, LeaseError, RefusedError, UnavailableError
from retroln.files import sha256_file, sha256_json, write_json
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.report.cautions import by_sentence, cautions
from retroln.settings import Settings
from retroln.steps import landmark_queue
from retroln.steps.case_objects import source_of, taking_back
from retroln.steps.cases import OnOutcome
from retroln.steps.claimed import Job, run_claimed
from retroln.steps.runs import Backlog
from retroln.steps.spine import Spine, bring_weights, check_weights, spine_of
from retroln.steps.workspace import Workspace, open_workspace


def backlog(settings: Settings) -> Backlog:
    """What waits for preparation, scans that failed before included, and what preparation answers for.

    The other scans it answers for were prepared before, or are still in quarantine.

    Raises:
        SettingsError, NotFoundError, IntegrityError: TotalSegmentator shall be used and its weights are not
            in the store as pinned; nothing was begun.
    """
    check_weights(settings)
    catalog = open_workspace(settings).catalog
    catalog.requeue_failed()
    return Backlog(
        left=tuple(catalog.scans_to_prepare()),
        skipped=catalog.count_prepared(),
        held=tuple(catalog.held_after_ingest()),
    )


def reopen(settings: Settings) -> int:
    """Send every scan that was cut by another region than the present one back to preparation.

    Returns:
        How many; their crops and results stay until new ones replace them.
    """
    return open_workspace(settings).catalog.reopen_prepared(settings.roi)


def prepare(
    settings: Settings,
    scan_ids: Sequence[int],
    *,
    run_id: int,
    owner: str,
    on_outcome: OnOutcome | None = None,
) -> list[CaseOutcome]:
    """Prepare the given scans in a process pool under claims of `owner`; see `claimed.run_claimed`.

    Raises:
        MissingExtraError, UserError, IntegrityError: TotalSegmentator shall be used and cannot on this
            machine; no scan was begun.
    """
    bring_weights(settings)
    job = Job(settings, run_id, owner, partial(prepare_case, settings, run_id, owner=owner), _waits)
    return run_claimed(job, scan_ids, processes=settings.processes, on_outcome=on_outcome)


def said_of(settings: Settings, run_id: int) -> list[str]:
    """What is to be said of the scans that a run prepared: a line for each sentence, with its cases."""
    prepared = open_workspace(settings).catalog.prepared_by(run_id)
    return by_sentence((case_id, cautions(found, sides)) for case_id, found, sides in prepared)


def _waits(scan: ScanRecord) -> bool:
    return scan.state is ScanState.INGESTED


def prepare_case(
    settings: Settings, run_id: int, scan: ScanRecord, *, owner: str | None = None
) -> CaseOutcome:
    """Find the region of one scan and store its crop; quarantine what needs a person.

    Args:
        owner: who must have the scan in hand when it is recorded; None asks for no claim.

    Raises:
        UnavailableError, RefusedError: a server is away or cannot do it, which is not the scan's fault: it
            stays `ingested`.
        LeaseError: another worker has the scan by now; nothing was recorded.
        WithdrawnError: the patient withdrew meanwhile; nothing was recorded, and nothing of it is left.
    """
    workspace = open_workspace(settings).of_worker(owner)
    revision = f"{scan.case_id}/{source_of(scan)}"
    with taking_back(workspace, scan, f"scans/{revision}/", f"crops/{revision}-"):
        return _prepare_or_hold(workspace, scan, run_id)


def _prepare_or_hold(workspace: Workspace, scan: ScanRecord, run_id: int) -> CaseOutcome:
    try:
        with workspace.scratch() as folder:
            return _prepare(workspace, scan, folder, run_id)
    except InputError as error:
        workspace.catalog.quarantine(scan.scan_id, error.reason, str(error), run_id)
        return CaseOutcome(scan.case_id, Outcome.QUARANTINED, error.reason, str(error))
    except (UnavailableError, RefusedError, LeaseError):
        raise
    except Exception as error:
        workspace.catalog.fail(scan.scan_id, type(error).__name__, str(error), run_id)
        raise


def _prepare(workspace: Workspace, scan: ScanRecord, folder: Path, run_id: int) -> CaseOutcome:
    """The region by the landmarks, or the case in the queue of those that need a look at them."""
    ct, ct_name = _load(workspace, scan.ct_key, folder), scan.source_uri.get("ct", scan.case_id)
    nifti.check_ct(ct, ct_name)
    word = workspace.catalog.landmark_review_of(scan.scan_id)
    ruling, seen = landmark_queue.ruling_of(word), landmark_queue.Seen(ct)
    try:
        spine = spine_of(workspace, scan, ct, folder, word)
        seen = landmark_queue.Seen(ct, spine.vertebrae, spine.source, spine.key)
        with landmarks.naming_inputs(ct_name, spine.name):
            delivered = Grid(scan.source_shape, np.asarray(scan.source_affine, float))
            assessment = landmarks.assess(
                spine.vertebrae, unanchored=workspace.settings.unanchored, ct=ct, ruling=ruling
            )
            region = roi.locate(spine.vertebrae, assessment, workspace.settings.roi, delivered)
    except LandmarkError as error:
        landmark_queue.hold(workspace, scan, error, seen, run_id)
        return CaseOutcome(scan.case_id, Outcome.QUARANTINED, error.reason, str(error))
    draft = _landmarks_draft(scan, spine, assessment)
    stored = _store_region(workspace, scan, folder, ct, region)
    workspace.catalog.record_prepared(scan.scan_id, draft, *stored, run_id, vertebrae_key=spine.key)
    return CaseOutcome(scan.case_id, Outcome.DONE)


def _store_region(
    workspace: Workspace, scan: ScanRecord, folder: Path, ct: Volume, region: roi.Roi
) -> tuple[RoiDraft, CropDraft]:
    mask = _load(workspace, scan.mask_key, folder) if scan.mask_key else None
    inside = roi.containment(mask, region.box) if mask else None
    document = roi.to_json(region, containment=inside)
    base = f"crops/{scan.case_id}/{source_of(scan)}-{sha256_json(document)[:16]}/"
    crop = CropDraft(
        ct_key=base + "ct.nii.gz",
        ct_sha256=_store(workspace, ct.crop(region.box), folder, base + "ct.nii.gz"),
        mask_key=base + "mask.nii.gz" if mask else None,
        mask_sha256=_store(workspace, mask.crop(region.box), folder, base + "mask.nii.gz") if mask else None,
        roi_key=base + "roi.json",
    )
    write_json(folder / "roi.json", document)
    workspace.store.put_file(folder / "roi.json", crop.roi_key)
    return _roi_draft(region, inside, document), crop


def _load(workspace: Workspace, key: str | None, folder: Path) -> Volume:
    assert key is not None
    path = folder / key.rsplit("/", 1)[-1]
    workspace.store.get_file(key, path)
    return nifti.read(path)


def _store(workspace: Workspace, crop: Volume, folder: Path, key: str) -> str:
    path = folder / f"crop-{key.rsplit('/', 1)[-1]}"
    nifti.write(path, crop.array, crop.grid)
    workspace.store.put_file(path, key)
    return sha256_file(path)


def _landmarks_draft(scan: ScanRecord, spine: Spine, assessment: landmarks.Assessment) -> LandmarksDraft:
    return LandmarksDraft(
        source=spine.source,
        label_ids=scan.label_ids if spine.source == "provided" else "totalseg-v2",
        rung=assessment.rung,
        anchored=assessment.anchored,
        truncated=[level.value for level in assessment.truncated],
        findings=[*spine.findings, *assessment.findings],
        levels=assessment.per_level,
        confidence=assessment.confidence,
    )


def _roi_draft(region: roi.Roi, inside: roi.Containment | None, document: dict[str, object]) -> RoiDraft:
    return RoiDraft(
        start=region.box.start,
        stop=region.box.stop,
        clamped_sides=list(region.clamped_sides),
        containment=inside.share if inside else None,
        document=document,
    )
