"""Vertebrae T11-S1 from a combined label map or from one file per level.

Each level is kept as its bounding box and the mask inside it, so a whole spine takes a few megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy.levels import (
    LEVEL_IDS,
    LEVEL_ORDER,
    LUMBAR,
    REGION_LEVELS,
    STATED_BY,
    Level,
    Vertebra,
    cut_out,
    scheme_ids,
)
from retroln.anatomy.ribs import RIB_12_IDS, rib_12_level
from retroln.endings import NIFTI, ambiguous, by_small_letters, has_ending
from retroln.errors import InputError, NotFoundError
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid, require_same_grid
from retroln.imaging.volume import Volume, occupied_box
from retroln.settings import LabelScheme

__all__ = [
    "LEVEL_ORDER",
    "LUMBAR",
    "REGION_LEVELS",
    "LabelScheme",
    "Level",
    "Vertebra",
    "Vertebrae",
    "read",
    "scheme_ids",
]
_DECODERS = 2


@dataclass(frozen=True, eq=False)
class Vertebrae:
    """The levels found on one grid.

    Attributes:
        grid: RAS+ grid that the boxes refer to.
        levels: only levels with at least one voxel, top to bottom.
        overlap_voxels: voxels claimed by two levels (per-level files only).
        source: grid of the label map as delivered.
        rib_12: the level that a labelled 12th rib starts at; None when no rib says so.
    """

    grid: Grid
    levels: Mapping[Level, Vertebra]
    overlap_voxels: int
    source: Grid
    rib_12: Level | None = None

    @property
    def ribs_at_t12(self) -> bool:
        """A labelled 12th rib starts at T12."""
        return self.rib_12 is Level.T12

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
            cut = [cut_out(labels == value, level, outer.start) for value, level in ids.items()]
            found = [vertebra for vertebra in cut if vertebra is not None]
        levels = _in_order(found)
        rib_12 = rib_12_level(volume, levels, RIB_12_IDS[scheme])
        return cls(volume.grid, levels, 0, volume.source, rib_12)

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

    def facts(self) -> dict[str, Any]:
        """Plain JSON of what `to_label_map` cannot hold."""
        return {"overlap_voxels": self.overlap_voxels, "rib_12": self.rib_12}

    def with_facts(self, facts: Mapping[str, Any]) -> Vertebrae:
        """The same levels with stored `facts`; those of the first release say `ribs_at_t12` instead."""
        at_t12 = Level.T12 if facts.get("ribs_at_t12") else None
        rib_12 = Level(facts["rib_12"]) if facts.get("rib_12") else at_t12
        return replace(self, overlap_voxels=int(facts["overlap_voxels"]), rib_12=rib_12)

    def to_label_map(self) -> NDArray[np.uint8]:
        """RAS+ label map in TotalSegmentator v2 ids, Fortran order; where levels overlap the lower wins."""
        labels = np.zeros(self.grid.shape, np.uint8, order="F")
        for level, vertebra in self.levels.items():
            labels[vertebra.box.slices][vertebra.mask] = LEVEL_IDS["totalseg-v2"][level]
        return labels


read = Vertebrae.read


@dataclass(frozen=True, eq=False)
class _Part:
    grid: Grid
    source: Grid
    vertebra: Vertebra | None


def may_be_level(name: str) -> bool:
    """Whether a file's name is of the kind `vertebrae_<LEVEL>.nii.gz`."""
    return name.lower().startswith("vertebrae_") and has_ending(name, *NIFTI)


def level_files(folder: Path) -> dict[Level, Path]:
    """The existing `vertebrae_<LEVEL>.nii.gz` (or .nii) of each level, in capitals or not, top to bottom.

    Raises:
        NotFoundError: there is none.
        InputError: `ambiguous_name`.
    """
    names = by_small_letters(path.name for path in folder.iterdir() if path.is_file())
    present = {}
    for level in LEVEL_ORDER:
        wanted = (f"vertebrae_{level}{end}".lower() for end in (".nii.gz", ".nii"))
        spelt = next((names[name] for name in wanted if name in names), [])
        if len(spelt) > 1:
            raise ambiguous(spelt, str(folder))
        if spelt:
            present[level] = folder / spelt[0]
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
            fix=f"give a combined label map as one file, and say by {STATED_BY} which ids it holds",
        )


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
