"""A dataset version made ready for training on this machine: scaled crops, plans, resampled arrays."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from retroln.catalog.records import CropRecord, DatasetRecord, MemberDraft
from retroln.errors import ConflictError
from retroln.files import sha256_file, write_json
from retroln.imaging import intensity, nifti
from retroln.nnunet import dataset, environment, plans, splits, train
from retroln.settings import Profile, Settings
from retroln.steps.fold_store import FoldStore, Ticket
from retroln.steps.workspace import Workspace, open_workspace

_LOG = logging.getLogger(__name__)
_READY = "ready.json"
_PLANS = "plans"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workshop:
    """nnU-Net's folders of a dataset version and profile, ready to train any fold in."""

    folders: environment.Folders
    plans_id: str


def root_of(settings: Settings, ticket: Ticket) -> Path:
    """Folder of a dataset version and profile on this machine."""
    return settings.work_dir / "nnunet" / f"{ticket.dataset_version[:16]}-{ticket.spec.profile}"


def ready(settings: Settings, ticket: Ticket) -> Workshop:
    """Make the training's data ready, or find that it is; test cases never reach nnU-Net's folders.

    The first machine's plans hold for all, so that folds fit together and a checkpoint fits elsewhere
    although another processor may round the data's statistics otherwise. `ready.json`, written last,
    says what for the folder is complete.

    Raises:
        ConflictError: a crop was cut anew since the dataset version was frozen, or a patient of it withdrew.
    """
    catalog = open_workspace(settings).catalog
    catalog.require_trainable(ticket.dataset_version)
    record = catalog.dataset(ticket.dataset_version)
    folders = environment.activate(root_of(settings, ticket))
    made = Workshop(folders, plans.PLANS_ID[ticket.spec.profile])
    shared = FoldStore.of(settings, ticket)
    with _alone(folders.root):
        if shared.sealed(_PLANS) is None:
            _make(settings, ticket, made, record, planned=False)
            files = {name: _base(folders) / name for name in _planned(made)}
            shared.put(_PLANS, files, environment.versions(), first_wins=True)
        shared.fetch(_PLANS, _base(folders))
        _make(settings, ticket, made, record, planned=True)
    return made


def _make(
    settings: Settings, ticket: Ticket, made: Workshop, record: DatasetRecord, *, planned: bool
) -> None:
    """Do all that is left, if anything; `planned` when the plans that hold for all lie here already."""
    if _is_ready(made, record):
        return
    _lay_out(settings, record, made.folders)
    splits.write_splits(_base(made.folders), _folds(record))
    _apart(_compute, made, ticket.spec.profile, settings.processes, planned)
    write_json(made.folders.root / _READY, _content(made, record))


def _compute(made: Workshop, profile: Profile, processes: int, planned: bool) -> None:
    """Plan and preprocess, in a process that must know its folders by itself."""
    folders = environment.activate(made.folders.root)
    if not planned:
        plans.plan(folders, profile, processes)
    train.preprocess(folders, made.plans_id, processes)


def _planned(made: Workshop) -> tuple[str, str]:
    return f"{made.plans_id}.json", "dataset_fingerprint.json"


def _is_ready(made: Workshop, record: DatasetRecord) -> bool:
    marker = made.folders.root / _READY
    return marker.is_file() and bool(json.loads(marker.read_bytes()) == _content(made, record))


def _content(made: Workshop, record: DatasetRecord) -> dict[str, Any]:
    """All that decides what lies in the folders."""
    files = (*_planned(made), "splits_final.json", "dataset.json")
    inputs = {name: _base(made.folders) / name for name in files}
    return {
        "dataset": record.version,
        "versions": environment.versions(),
        "inputs": {name: sha256_file(path) for name, path in inputs.items() if path.is_file()},
    }


def _base(folders: environment.Folders) -> Path:
    return folders.preprocessed / dataset.DATASET_NAME


def _lay_out(settings: Settings, record: DatasetRecord, folders: environment.Folders) -> None:
    """Training crops, scaled as the contract says, as nnU-Net's raw dataset."""
    workspace = open_workspace(settings)
    frozen = _frozen(workspace, record)
    training = [member for member in record.members if member.role == "train"]
    cases = [_raw_case(workspace, member, frozen, folders.root / "crops") for member in training]
    dataset.write_raw(folders, cases)


def _frozen(workspace: Workspace, record: DatasetRecord) -> dict[str, tuple[str, str]]:
    """Hashes of crop and mask of each case, from the dataset's manifest."""
    manifest = json.loads(workspace.store.get_bytes(record.manifest_key))
    return {row[0]: (row[4], row[5]) for row in manifest["members"]}


def _raw_case(
    workspace: Workspace, member: MemberDraft, frozen: dict[str, tuple[str, str]], folder: Path
) -> dataset.RawCase:
    """Scale a crop once; files are whole or absent, and the folder belongs to one dataset version."""
    ct_path, label_path = folder / f"{member.case_id}_ct.nii.gz", folder / f"{member.case_id}_mask.nii.gz"
    crop = workspace.catalog.crop_of(member.scan_id)
    _require_frozen(member, crop, frozen)
    if not (ct_path.is_file() and label_path.is_file()):
        with workspace.scratch() as scratch:
            workspace.store.get_file(crop.ct_key, scratch / "ct.nii.gz")
            workspace.store.get_file(str(crop.mask_key), scratch / "mask.nii.gz")
            ct, mask = nifti.read(scratch / "ct.nii.gz"), nifti.read_labels(scratch / "mask.nii.gz")
        nifti.write(ct_path, intensity.scale(ct.array, workspace.settings.hu), ct.grid)
        nifti.write(label_path, (mask.array > 0).astype("uint8"), mask.grid)
    return dataset.RawCase(member.case_id, ct_path, label_path, member.patient_id)


def _require_frozen(member: MemberDraft, crop: CropRecord, frozen: dict[str, tuple[str, str]]) -> None:
    if frozen[member.case_id] != (crop.ct_sha256, crop.mask_sha256):
        raise ConflictError(
            f"the crop of {member.case_id} was made anew since this dataset version was frozen",
            fix="start the training again: it freezes a new version",
        )


def _folds(record: DatasetRecord) -> dict[str, int]:
    return {m.case_id: m.fold for m in record.members if m.role == "train" and m.fold is not None}


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time makes a folder ready; the others wait for its work."""
    with (root / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("waiting for another process that makes %s ready", root)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call in a fresh process: nnU-Net forks workers, which must not inherit an orchestrator's threads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
