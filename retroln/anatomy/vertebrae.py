"""Vertebrae T11-S1 from a combined label map or from one file per level.

Each level is kept as its bounding box and the mask inside it, so a whole spine takes a few megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError, NotFoundError
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid, VoxelBox, require_same_grid
from retroln.imaging.volume import Volume, occupied_box
from retroln.settings import LabelScheme

_DECODERS = 2
_RIB_REACH_MM = 45.0


class Level(StrEnum):
    """The vertebrae that matter here; T11 and S1 confirm the numbering and never widen the region."""

    T11 = "T11"
    T12 = "T12"
    L1 = "L1"
    L2 = "L2"
    L3 = "L3"
    L4 = "L4"
    L5 = "L5"
    S1 = "S1"


LEVEL_ORDER = tuple(Level)
LUMBAR = LEVEL_ORDER[2:7]
REGION_LEVELS = LEVEL_ORDER[1:7]

# TotalSegmentator map_to_binary.py (v1, v2 `total`); Sekuboyina et al., VerSe, Med Image Anal 2021.
_IDS: dict[LabelScheme, dict[Level, int]] = {
    "totalseg-v2": {level: 33 - i for i, level in enumerate(LEVEL_ORDER)},
    "totalseg-v1": {level: 24 - i for i, level in enumerate(LEVEL_ORDER[:7])},
    "verse": {level: 18 + i for i, level in enumerate(LEVEL_ORDER[:7])} | {Level.S1: 26},
}
_RIB_12_IDS: dict[LabelScheme, tuple[int, ...]] = {
    "totalseg-v2": (103, 115),
    "totalseg-v1": (69, 81),
    "verse": (),
}


def scheme_ids(scheme: LabelScheme) -> dict[int, Level]:
    """Label value to level. The scheme is stated by the user: v1's T9..T3 read like v2's S1..T12."""
    return {value: level for level, value in _IDS[scheme].items()}


@dataclass(frozen=True, eq=False)
class Vertebra:
    """One level: the RAS+ box of its voxels and the boolean mask inside the box."""

    level: Level
    box: VoxelBox
    mask: NDArray[np.bool_]

    @property
    def voxels(self) -> int:
        """How many voxels the level has, at least 1."""
        return int(np.count_nonzero(self.mask))

    def centroid_index(self) -> NDArray[np.float64]:
        """Mean voxel index, RAS+, shape (3,)."""
        counts = [self.mask.sum(axis=other, dtype=np.int64) for other in ((1, 2), (0, 2), (0, 1))]
        inner = [count @ np.arange(len(count)) / count.sum() for count in counts]
        return np.asarray(np.array(self.box.start) + np.array(inner), np.float64)


@dataclass(frozen=True, eq=False)
class Vertebrae:
    """The levels found on one grid.

    Attributes:
        grid: RAS+ grid that the boxes refer to.
        levels: only levels with at least one voxel, top to bottom.
        overlap_voxels: voxels claimed by two levels (per-level files only).
        source: grid of the label map as delivered.
        ribs_at_t12: a labelled 12th rib starts at T12; False also when no ribs are labelled.
    """

    grid: Grid
    levels: Mapping[Level, Vertebra]
    overlap_voxels: int
    source: Grid
    ribs_at_t12: bool = False

    @classmethod
    def read(cls, path: Path, scheme: LabelScheme) -> Vertebrae:
        """From a folder of per-level files or a combined label map, whichever `path` is.

        Raises:
            InputError, GeometryError, NotFoundError: see `from_folder` and `nifti.read_labels`.
        """
        if path.is_dir():
            return cls.from_folder(path)
        return cls.from_label_map(nifti.read_labels(path), scheme)

    @classmethod
    def from_label_map(cls, volume: Volume, scheme: LabelScheme) -> Vertebrae:
        """From one label map with the ids of `scheme`; other values are ignored."""
        ids = scheme_ids(scheme)
        outer = occupied_box((volume.array >= min(ids)) & (volume.array <= max(ids)))
        found: list[Vertebra] = []
        if outer is not None:
            labels = volume.array[outer.slices]
            cut = [_cut_out(labels == value, level, outer.start) for value, level in ids.items()]
            found = [vertebra for vertebra in cut if vertebra is not None]
        levels = _in_order(found)
        ribs = _ribs_start_at_t12(volume, levels, _RIB_12_IDS[scheme])
        return cls(volume.grid, levels, 0, volume.source, ribs)

    @classmethod
    def from_folder(cls, folder: Path) -> Vertebrae:
        """From `vertebrae_<LEVEL>.nii.gz` (or .nii) files; any voxel above 0 belongs to the level.

        Other files are ignored, and a file without voxels means that the level was not found.

        Raises:
            NotFoundError: the folder holds no such file.
            GeometryError: the files do not share one grid.
            InputError: `not_a_level_mask` for a file with several labels, or an unreadable file.
        """
        files = level_files(folder)
        with ThreadPoolExecutor(_DECODERS) as pool:
            parts = list(pool.map(_read_level, files.values(), files))
        grid, source = parts[0].grid, parts[0].source
        for part, file in zip(parts[1:], list(files.values())[1:], strict=True):
            first = next(iter(files.values())).name
            require_same_grid(grid, part.grid, what="vertebra file", file=file, reference_name=first)
        levels = _in_order([part.vertebra for part in parts if part.vertebra is not None])
        return cls(grid, levels, _overlap_voxels(list(levels.values())), source)

    def to_label_map(self) -> NDArray[np.uint8]:
        """RAS+ label map in TotalSegmentator v2 ids, Fortran order; where levels overlap the lower wins."""
        labels = np.zeros(self.grid.shape, np.uint8, order="F")
        for level, vertebra in self.levels.items():
            labels[vertebra.box.slices][vertebra.mask] = _IDS["totalseg-v2"][level]
        return labels


read = Vertebrae.read


@dataclass(frozen=True, eq=False)
class _Part:
    grid: Grid
    source: Grid
    vertebra: Vertebra | None


def level_files(folder: Path) -> dict[Level, Path]:
    """The existing `vertebrae_<LEVEL>.nii.gz` (or .nii) of each level, top to bottom.

    Raises:
        NotFoundError: there is none.
    """
    wanted = {
        level: [folder / f"vertebrae_{level}{end}" for end in (".nii.gz", ".nii")] for level in LEVEL_ORDER
    }
    files = {level: next((p for p in paths if p.is_file()), None) for level, paths in wanted.items()}
    present = {level: path for level, path in files.items() if path is not None}
    if not present:
        raise NotFoundError(
            "no vertebra files in the folder",
            file=folder,
            expected="vertebrae_T12.nii.gz, vertebrae_L1.nii.gz, ...",
            fix="name the folder that TotalSegmentator wrote, or a combined label map",
        )
    return present


def _read_level(path: Path, level: Level) -> _Part:
    volume = nifti.read_labels(path)
    box = occupied_box(volume.array)
    vertebra = None
    if box is not None:
        labels = volume.array[box.slices]
        _require_one_label(labels, path)
        vertebra = Vertebra(level, box, labels > 0)
    return _Part(volume.grid, volume.source, vertebra)


def _require_one_label(labels: NDArray[Any], path: Path) -> None:
    values = np.unique(labels)
    values = values[values != 0]
    if len(values) != 1 or values[0] < 0:
        raise InputError(
            "a per-level file must hold one vertebra",
            reason="not_a_level_mask",
            file=path,
            expected="0 and one positive label",
            got=f"labels {values[:6].tolist()}",
            fix="pass a combined label map as a file, with --label-ids",
        )


def _cut_out(mask: NDArray[np.bool_], level: Level, origin: Sequence[int]) -> Vertebra | None:
    """The level of a mask whose first voxel has the index `origin`, or None if it is empty."""
    inner = occupied_box(mask)
    if inner is None:
        return None
    start = tuple(a + b for a, b in zip(origin, inner.start, strict=True))
    stop = tuple(a + b for a, b in zip(origin, inner.stop, strict=True))
    return Vertebra(level, VoxelBox(start, stop), mask[inner.slices].copy())  # type: ignore[arg-type]


def _in_order(found: Sequence[Vertebra]) -> dict[Level, Vertebra]:
    by_level = {vertebra.level: vertebra for vertebra in found}
    return {level: by_level[level] for level in LEVEL_ORDER if level in by_level}


def _overlap_voxels(levels: Sequence[Vertebra]) -> int:
    """Voxels that two levels share, each pair counted."""
    return sum(_shared(a, b) for a, b in combinations(levels, 2))


def _shared(a: Vertebra, b: Vertebra) -> int:
    start = tuple(max(x, y) for x, y in zip(a.box.start, b.box.start, strict=True))
    stop = tuple(min(x, y) for x, y in zip(a.box.stop, b.box.stop, strict=True))
    if any(lo >= hi for lo, hi in zip(start, stop, strict=True)):
        return 0
    common = [
        v.mask[tuple(slice(lo - o, hi - o) for lo, hi, o in zip(start, stop, v.box.start, strict=True))]
        for v in (a, b)
    ]
    return int(np.count_nonzero(common[0] & common[1]))


def _ribs_start_at_t12(volume: Volume, levels: Mapping[Level, Vertebra], rib_ids: tuple[int, ...]) -> bool:
    """True when T12 is the level whose centroid comes nearest to a 12th rib, and within 45 mm.

    In the whole-spine examples that this was set on, the rib's head lies 34 to 38 mm from T12's centroid
    and 44 mm or more from T11's and L1's, so a numbering that is one level off does not pass. Levels cut by
    the top or bottom border say nothing.
    """
    whole = {
        level: v for level, v in levels.items() if v.box.start[2] > 0 and v.box.stop[2] < volume.grid.shape[2]
    }
    if Level.T12 not in whole or not rib_ids:
        return False
    spacing_mm = np.array(volume.grid.spacing_mm)
    centre = levels[Level.T12].centroid_index()
    reach = np.ceil(_RIB_REACH_MM / spacing_mm)
    low, high = np.maximum(centre - reach, 0).astype(int), (centre + reach + 1).astype(int)
    near = volume.array[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
    ribs_mm = (np.argwhere(np.isin(near, rib_ids)) + low) * spacing_mm
    if not len(ribs_mm):
        return False
    rivals = {level: whole[level] for level in LEVEL_ORDER[:3] if level in whole}
    distance_mm = {
        level: float(np.linalg.norm(ribs_mm - vertebra.centroid_index() * spacing_mm, axis=1).min())
        for level, vertebra in rivals.items()
    }
    return min(distance_mm, key=distance_mm.__getitem__) is Level.T12 and (
        distance_mm[Level.T12] <= _RIB_REACH_MM
    )
