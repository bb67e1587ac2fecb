"""Ingest: validate, hash, canonicalise and record each case; the source is never touched.

What is stored is RAS+ NIfTI with a fresh header (no extension, description or file name of the
source), under a key that holds the hash of the source bytes, so that ingesting twice writes the same.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from retroln.anatomy.vertebrae import Vertebrae
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.records import ScanDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.catalog.withdrawals import WITHDRAWN
from retroln.errors import ConflictError, InputError, LandmarkError, NotFoundError, naming
from retroln.files import sha256_json
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid, require_same_grid
from retroln.imaging.volume import Volume
from retroln.settings import Settings
from retroln.steps.cases import OnOutcome, run_cases
from retroln.steps.cohort import CaseEntry, list_cases, parts_of
from retroln.steps.workspace import Workspace, open_workspace
from retroln.storage.base import ObjectInfo

Parts = dict[str, tuple[ObjectInfo, ...]]


def ingest(
    settings: Settings,
    entries: tuple[CaseEntry, ...] | None = None,
    *,
    run_id: int,
    on_outcome: OnOutcome | None = None,
) -> list[CaseOutcome]:
    """Ingest every case of the source (or just `entries`), one outcome each."""
    if entries is None:
        entries = list_entries(settings)
    return run_cases(
        partial(ingest_case, settings, run_id),
        entries,
        case_id=lambda entry: entry.case_id,
        processes=settings.processes,
        patience_s=settings.patience_s,
        on_outcome=on_outcome,
    )


def list_entries(settings: Settings) -> tuple[CaseEntry, ...]:
    """Every case that the source lists."""
    return list_cases(open_workspace(settings).source, settings.label_ids)


def ingest_case(settings: Settings, run_id: int, entry: CaseEntry) -> CaseOutcome:
    """Take one case in: done, skipped when its bytes are known, or quarantined with the reason."""
    workspace = open_workspace(settings)
    current = workspace.catalog.current_scan(entry.case_id)
    if current and current.state is ScanState.WITHDRAWN:
        return _refused(entry, _withdrawn(entry, current.patient_id))
    fingerprint = sha256_json([entry.case_id, entry.patient_id, str(entry.problem)])
    sha256: str | None = None
    try:
        if workspace.catalog.withdrawal_of(entry.patient_id):
            raise _withdrawn(entry, entry.patient_id)
        if entry.problem:
            raise entry.problem
        parts = parts_of(entry, workspace.source)
        fingerprint = _fingerprint(entry, parts)
        if known := _known(current, fingerprint):
            return known
        _require_same_patient(entry, current)
        with workspace.scratch() as folder:
            sha256 = _fetch(workspace, entry, parts, folder)
            if current and current.source_sha256 == sha256 and not _wanted_again(current):
                workspace.catalog.touch_fingerprint(current.scan_id, fingerprint)
                return _known(current, current.source_fingerprint) or _skipped(current)
            draft = _canonicalise(workspace, entry, parts, folder, fingerprint, sha256)
    except InputError as error:
        return _quarantine(workspace, entry, current, error, fingerprint, sha256, run_id)
    try:
        workspace.catalog.add_scan(draft, run_id)
    except ConflictError:
        if workspace.catalog.withdrawal_of(entry.patient_id) is None:
            raise
    if workspace.catalog.withdrawal_of(entry.patient_id):
        return _take_back(workspace, entry)
    return CaseOutcome(entry.case_id, Outcome.DONE)


def _take_back(workspace: Workspace, entry: CaseEntry) -> CaseOutcome:
    """Remove what was just stored of a patient who was withdrawn meanwhile."""
    from retroln.steps import withdraw  # looks into MLflow, which ingest does not need otherwise

    withdraw.finish(workspace.settings, entry.patient_id)
    return _refused(entry, _withdrawn(entry, entry.patient_id))


def _withdrawn(entry: CaseEntry, patient_id: str) -> InputError:
    """Why nothing of a patient who took back consent, or under such a patient's case id, is taken in."""
    return InputError(
        f"patient {patient_id} took back consent",
        reason=WITHDRAWN,
        file=entry.ct,
        expected="no delivery of this patient",
        got=f"case {entry.case_id}",
        fix="delete it from the source; a case of somebody else needs a case id of its own",
    )


def _refused(entry: CaseEntry, error: InputError) -> CaseOutcome:
    return CaseOutcome(entry.case_id, Outcome.QUARANTINED, error.reason, str(error))


def _known(current: ScanRecord | None, fingerprint: str) -> CaseOutcome | None:
    if current is None or current.source_fingerprint != fingerprint or _wanted_again(current):
        return None
    if current.state is ScanState.QUARANTINED and current.ct_key is None:
        return CaseOutcome(current.case_id, Outcome.QUARANTINED, current.reason, current.detail)
    return _skipped(current)


def _skipped(current: ScanRecord) -> CaseOutcome:
    return CaseOutcome(current.case_id, Outcome.SKIPPED)


def _wanted_again(current: ScanRecord) -> bool:
    """True for a case that a person requeued before anything of it was stored."""
    return current.ct_key is None and current.state is not ScanState.QUARANTINED


def _fingerprint(entry: CaseEntry, parts: Parts) -> str:
    objects = {name: [(info.key, info.fingerprint) for info in infos] for name, infos in parts.items()}
    return sha256_json([entry.patient_id, entry.label_ids, objects])


def _require_same_patient(entry: CaseEntry, current: ScanRecord | None) -> None:
    if current and current.ct_key and current.patient_id != entry.patient_id:
        raise InputError(
            f"case {entry.case_id} belonged to another patient before",
            reason="patient_changed",
            expected=current.patient_id,
            got=entry.patient_id,
            fix="give the new scan a case id of its own",
        )


def _fetch(workspace: Workspace, entry: CaseEntry, parts: Parts, folder: Path) -> str:
    """Download every part and return the hash of the case: its bytes and what they are said to be."""
    hashes: dict[str, list[str | list[str]]] = {}
    for name, infos in parts.items():
        target = folder / name
        target.mkdir()
        hashes[name] = []
        for info in infos:
            file_name = info.key.rsplit("/", 1)[-1]
            try:
                digest = workspace.source.get_file(info.key, target / file_name)
            except NotFoundError as error:
                raise InputError("vanished while reading", reason="missing_object", file=info.key) from error
            # in a folder of levels a file's name says which level it is
            in_folder = name == "vertebrae" and info.key != entry.vertebrae
            hashes[name].append([file_name, digest] if in_folder else digest)
    return sha256_json([entry.patient_id, entry.label_ids, hashes])


def _canonicalise(
    workspace: Workspace, entry: CaseEntry, parts: Parts, folder: Path, fingerprint: str, sha256: str
) -> ScanDraft:
    ct = _read_ct(folder / "ct", entry)
    base = f"scans/{entry.case_id}/{sha256[:16]}/"
    keys: dict[str, str] = {}
    if "vertebrae" in parts:
        spine = _read_vertebrae(folder / "vertebrae", entry, ct.grid)
        labels = Volume(spine.to_label_map(), ct.grid, ct.grid)
        keys["vertebrae"] = _store(workspace, labels, folder, base + "vertebrae.nii.gz")
        workspace.store.put_bytes(spine_facts(spine), facts_key(keys["vertebrae"]))
    if "mask" in parts:
        with naming(str(entry.mask), instead=True):
            mask = nifti.read_labels(_only_file(folder / "mask"))
        require_same_grid(ct.grid, mask.grid, what="node mask", file=entry.mask)
        keys["mask"] = _store(workspace, mask, folder, base + "mask.nii.gz")
    keys["ct"] = _store(workspace, ct, folder, base + "ct.nii.gz")
    return ScanDraft(
        case_id=entry.case_id,
        patient_id=entry.patient_id,
        state=ScanState.INGESTED,
        source_uri=_locations(entry),
        source_fingerprint=fingerprint,
        source_sha256=sha256,
        ct_key=keys["ct"],
        vertebrae_key=keys.get("vertebrae"),
        mask_key=keys.get("mask"),
        label_ids=entry.label_ids,
        shape=ct.grid.shape,
        affine=ct.grid.affine.tolist(),
        source_shape=ct.source.shape,
        source_affine=ct.source.affine.tolist(),
        orientation=ct.source.orientation,
    )


def _read_ct(folder: Path, entry: CaseEntry) -> Volume:
    with naming(entry.ct, instead=True):
        ct = nifti.read(_only_file(folder))
        nifti.check_ct(ct, entry.ct)
    return ct


def _read_vertebrae(folder: Path, entry: CaseEntry, grid: Grid) -> Vertebrae:
    single = entry.vertebrae and not entry.vertebrae.endswith("/") and (folder / Path(entry.vertebrae).name)
    path = single if single and single.exists() else folder
    try:
        with naming(str(entry.vertebrae), instead=True):
            vertebrae = Vertebrae.read(path, entry.label_ids)
    except NotFoundError as error:
        raise LandmarkError(
            "no vertebra level in the folder",
            reason="landmarks_missing",
            file=entry.vertebrae,
            expected="files named vertebrae_<LEVEL>.nii.gz",
            got=", ".join(sorted(found.name for found in folder.iterdir()))[:200],
            fix="deliver one file per level, or one label map",
        ) from error
    require_same_grid(grid, vertebrae.grid, what="vertebra label map", file=entry.vertebrae)
    return vertebrae


def facts_key(vertebrae_key: str) -> str:
    """Key of what one label map cannot hold: how far delivered levels overlapped, where a 12th rib starts."""
    return vertebrae_key.removesuffix(".nii.gz") + ".json"


def spine_facts(spine: Vertebrae) -> bytes:
    """Content of the object under `facts_key`."""
    return json.dumps(spine.facts()).encode()


def _only_file(folder: Path) -> Path:
    return next(iter(sorted(folder.iterdir())))


def _store(workspace: Workspace, volume: Volume, folder: Path, key: str) -> str:
    path = folder / "canonical.nii.gz"
    nifti.write(path, volume.array, volume.grid)
    workspace.store.put_file(path, key)
    return key


def _locations(entry: CaseEntry) -> dict[str, str]:
    named = {"ct": entry.ct, "vertebrae": entry.vertebrae, "mask": entry.mask}
    return {name: key for name, key in named.items() if key}


def _quarantine(
    workspace: Workspace,
    entry: CaseEntry,
    current: ScanRecord | None,
    error: InputError,
    fingerprint: str,
    sha256: str | None,
    run_id: int,
) -> CaseOutcome:
    outcome = _refused(entry, error)
    if known := _known(current, fingerprint):
        return known if known.outcome is Outcome.QUARANTINED else outcome
    draft = ScanDraft(
        case_id=entry.case_id,
        patient_id=current.patient_id if current and current.ct_key else entry.patient_id,
        state=ScanState.QUARANTINED,
        source_uri=_locations(entry),
        source_fingerprint=fingerprint,
        source_sha256=sha256,
        label_ids=entry.label_ids,
        reason=error.reason,
        detail=str(error),
    )
    workspace.catalog.add_scan(draft, run_id)
    return outcome
