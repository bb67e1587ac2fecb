"""A trained model as one folder: nnU-Net's files, the preprocessing contract, a sha256 of each.

The folder is also a stock nnU-Net model folder (`nnUNetv2_predict_from_modelfolder` reads it).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from retroln.errors import IntegrityError, NotFoundError
from retroln.files import read_unchanged, sha256_file, sha256_unchanged, write_bytes, write_json
from retroln.nnunet.dataset import DATASET_NAME
from retroln.nnunet.environment import Folders
from retroln.settings import Hu, RoiSpec
from retroln.specs import Spec

CONTRACT, MANIFEST = "contract.json", "manifest.json"
CHECKPOINT = "checkpoint_final.pth"
TRAINER, CONFIGURATION = "RetroLNTrainer", "3d_fullres"


class Contract(Spec):
    """What inference must do to be what training was; lies in the bundle as `contract.json`."""

    model_config = ConfigDict(extra="forbid")

    format: int = Field(1, description="version of this file's layout")
    hu: Annotated[Hu, BeforeValidator(Hu.of_record)] = Field(
        description="window scaled to 0..1 before nnU-Net sees a crop"
    )
    roi: Annotated[RoiSpec, BeforeValidator(RoiSpec.of_record)] = Field(
        description="region that the crops were cut by"
    )
    labels: tuple[str, ...] = Field(("background", "lymph_node"), description="name of each label value")
    channels: tuple[str, ...] = Field(("CT",), description="input channels in order")
    axes: str = Field("zyx", description="array axes of the network: superior, anterior, right")
    orientation: str = Field("RAS", description="orientation of the crops")
    versions: dict[str, str] = Field(default_factory=dict, description="software that trained it")
    arithmetic: tuple[str, ...] = Field(
        (), description="what its folds were trained in; empty if not recorded"
    )
    dataset_version: str | None = Field(None, description="sha256 of the dataset version's content")
    min_probability: float = Field(0.5, gt=0, lt=1, description="a voxel of a node has at least this")
    min_finding_mm3: float = Field(65.0, ge=0, description="smaller findings are left out as specks")
    stand_in: str | None = Field(None, description="why this is no clinical model, e.g. trained on phantoms")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files match their manifest.

    Attributes:
        sha256: hash of the manifest, and so of every file: what a registry records.
        files: sha256 of each file, by its path in the bundle.
    """

    path: Path
    contract: Contract
    folds: tuple[int, ...]
    sha256: str
    files: Mapping[str, str]

    def read(self, name: str) -> bytes:
        """A file's bytes: what is returned is what was recorded.

        Raises:
            IntegrityError: the file has changed since the bundle was opened.
        """
        data, sha256 = read_unchanged(self.path / name)
        _require_hash(self.path / name, self.files[name], sha256)
        return data


def model_folder(folders: Folders, plans_id: str) -> Path:
    """Where nnU-Net keeps the folds of one plan."""
    return folders.results / DATASET_NAME / f"{TRAINER}__{plans_id}__{CONFIGURATION}"


def make(dest: Path, folders: Folders, plans_id: str, folds: Sequence[int], contract: Contract) -> Bundle:
    """Collect trained folds into `dest`, whole or not at all; a bundle already there is replaced.

    No checkpoint is unpickled: training has already written each fold's weights in their final form.

    Raises:
        NotFoundError: a fold is not trained to its end.
    """
    source = model_folder(folders, plans_id)
    names = ["plans.json", "dataset.json", *(f"fold_{fold}/{CHECKPOINT}" for fold in folds)]
    for name in names:
        if not (source / name).is_file():
            raise NotFoundError("fold is not trained", file=source / name, fix="train it first")
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=dest.parent) as scratch:
        _fill(Path(scratch) / "bundle", source, names, contract)
        shutil.rmtree(dest, ignore_errors=True)
        (Path(scratch) / "bundle").rename(dest)
    return load(dest)


def load(path: Path, sha256: str | None = None) -> Bundle:
    """Check every byte of a bundle before anything in it is used (`files.sha256_unchanged`).

    Args:
        sha256: the manifest's hash as a registry recorded it; None trusts the manifest itself.

    Raises:
        NotFoundError: no manifest.
        IntegrityError: a file is missing, extra, a link, or has other bytes than recorded.
    """
    manifest_file = path / MANIFEST
    if not manifest_file.is_file():
        raise NotFoundError("no model bundle", file=path, expected=MANIFEST, fix="give the bundle's folder")
    manifest = _manifest(manifest_file, sha256)
    _require_same_files(path, manifest)
    for name, recorded in manifest["files"].items():
        _require_hash(path / name, recorded, sha256_unchanged(path / name))
    hashed = sha256_unchanged(manifest_file)
    return Bundle(path, _contract(path), tuple(manifest["folds"]), hashed, manifest["files"])


def _fill(target: Path, source: Path, names: Sequence[str], contract: Contract) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    write_bytes(target / CONTRACT, (contract.model_dump_json(indent=2) + "\n").encode())
    files = {name: sha256_file(target / name) for name in [*names, CONTRACT]}
    folds = sorted(int(name.split("/")[0][5:]) for name in names if name.startswith("fold_"))
    write_json(target / MANIFEST, {"files": files, "folds": folds})


def _manifest(file: Path, sha256: str | None) -> dict[str, Any]:
    if sha256 is not None:
        _require_hash(file, sha256, sha256_unchanged(file))
    try:
        content = json.loads(file.read_bytes())
        files = {str(name): str(recorded) for name, recorded in content["files"].items()}
        return {"files": files, "folds": [int(fold) for fold in content["folds"]]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError("manifest cannot be read", file=file, got=str(error), fix=_FETCH) from error


def _require_same_files(path: Path, manifest: dict[str, Any]) -> None:
    """No file outside the manifest, none missing, no link: names are compared whole, so none can escape."""
    entries = [entry for entry in path.rglob("*") if not entry.is_dir() or entry.is_symlink()]
    found = {entry.relative_to(path).as_posix() for entry in entries}
    expected = {*manifest["files"], MANIFEST, CONTRACT, "plans.json", "dataset.json"}
    expected |= {f"fold_{fold}/{CHECKPOINT}" for fold in manifest["folds"]}
    unlisted = expected - {*manifest["files"], MANIFEST}
    wrong = (
        (found ^ expected) | unlisted | {e.relative_to(path).as_posix() for e in entries if e.is_symlink()}
    )
    if wrong or not manifest["folds"]:
        got = ", ".join(sorted(wrong)) or "no fold"
        raise IntegrityError("files do not match the manifest", file=path, got=got, fix=_FETCH)


def _require_hash(file: Path, recorded: str, got: str) -> None:
    if got != recorded:
        raise IntegrityError(
            "bytes do not match their recorded sha256", file=file, expected=recorded, got=got, fix=_FETCH
        )


def _contract(path: Path) -> Contract:
    try:
        return Contract.of_record(json.loads((path / CONTRACT).read_bytes()))
    except ValueError as error:  # no JSON, or no contract
        raise IntegrityError("contract cannot be read", file=path / CONTRACT, got=str(error)) from error


_FETCH = "fetch the model from the registry again"
