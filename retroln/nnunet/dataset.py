"""nnU-Net's raw dataset: scaled crops and label maps under the names that it expects."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError, UserError
from retroln.files import atomic_path, write_json
from retroln.imaging import nifti
from retroln.imaging.geometry import require_same_grid, upright
from retroln.imaging.volume import Volume
from retroln.nnunet.environment import Folders

DATASET_ID = 600
DATASET_NAME = "Dataset600_RetroLN"
LABELS = {"background": 0, "lymph_node": 1}
CHANNELS = {"0": "CT"}
FILE_ENDING = ".nii.gz"


@dataclass(frozen=True)
class RawCase:
    """A training case: a crop scaled to 0..1 (float) and its nodes (integers, 0 is background)."""

    case_id: str
    ct_path: Path
    label_path: Path
    patient_id: str


def write_raw(folders: Folders, cases: Sequence[RawCase]) -> Path:
    """Lay the cases out as nnU-Net's raw dataset; what lay there before is replaced.

    Files are linked (copied across file systems). Node numbers above 1 become 1, and a sheared
    grid, which SimpleITK refuses to read, is written as an upright one with the same spacing:
    nnU-Net trains in voxels.

    Returns:
        The dataset's folder under `raw`.

    Raises:
        InputError: `not_scaled`, `labels_not_integer`, `grid_mismatch`, `case_id_twice`.
        UserError: no case, or not a single node voxel in all of them.
    """
    _require_cases(cases)
    target = folders.raw / DATASET_NAME
    shutil.rmtree(target, ignore_errors=True)
    node_voxels = sum(_add(target, case) for case in cases)
    if not node_voxels:
        raise UserError(
            "no case holds a node", expected="label 1 in some mask", fix="deliver masks with nodes"
        )
    write_json(target / "dataset.json", _description(len(cases)))
    return target


def _require_cases(cases: Sequence[RawCase]) -> None:
    if not cases:
        raise UserError(
            "no training case", expected="at least one crop with a mask", fix="prepare cases first"
        )
    ids = [case.case_id for case in cases]
    twice = sorted({case_id for case_id in ids if ids.count(case_id) > 1})
    if twice:
        raise InputError(
            "case ids occur twice",
            reason="case_id_twice",
            got=", ".join(twice),
            fix="give each scan its own id",
        )


def _description(n_cases: int) -> dict[str, Any]:
    return {
        "name": DATASET_NAME,
        "channel_names": CHANNELS,
        "labels": LABELS,
        "numTraining": n_cases,
        "file_ending": FILE_ENDING,
        "overwrite_image_reader_writer": "SimpleITKIO",
    }


def _add(target: Path, case: RawCase) -> int:
    """Check one case, lay it out, and count its node voxels."""
    ct, labels = nifti.read(case.ct_path), nifti.read_labels(case.label_path)
    require_same_grid(ct.grid, labels.grid, what="the node mask", file=case.label_path)
    _require_scaled(ct.array, case.ct_path)
    nodes = labels.array > 0
    _place(case.ct_path, ct, target / "imagesTr" / f"{case.case_id}_0000{FILE_ENDING}")
    is_plain = labels.array.dtype == np.uint8 and labels.array.max(initial=0) <= 1
    if is_plain:
        _place(case.label_path, labels, target / "labelsTr" / f"{case.case_id}{FILE_ENDING}")
    else:
        grid = upright(labels.source)
        array = np.ascontiguousarray(labels.with_array(nodes.astype(np.uint8)).to_source())
        nifti.write(target / "labelsTr" / f"{case.case_id}{FILE_ENDING}", array, grid)
    return int(nodes.sum())


def _require_scaled(array: NDArray[Any], file: Path) -> None:
    low, high = float(array.min()), float(array.max())
    if not (0 <= low <= high <= 1) or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            "crop is not scaled to 0..1",
            reason="not_scaled",
            file=file,
            expected="floating point values in 0..1",
            got=f"{array.dtype} {low:g}..{high:g}",
            fix="scale the Hounsfield window first (retroln.imaging.intensity.scale)",
        )


def _place(source: Path, volume: Volume, target: Path) -> None:
    grid = upright(volume.source)
    if grid is not volume.source or not source.name.endswith(FILE_ENDING):
        nifti.write(target, np.ascontiguousarray(volume.to_source()), grid)
        return
    with atomic_path(target) as partial:
        partial.unlink()
        try:
            os.link(source.resolve(), partial)
        except OSError:
            shutil.copyfile(source, partial)
