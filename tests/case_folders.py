"""Folders of small cases with known answers, and a stand-in for the vertebra segmenter.

The spine is that of `spine.py`, moved along the left-right axis where a case must differ from the others.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from click.testing import CliRunner
from numpy.typing import NDArray
from spine import V2, grid_ras, reoriented, spine_labels

from retroln.anatomy.segmenter import Device, Quality
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae
from retroln.cli import cli
from retroln.errors import UserError
from retroln.imaging import nifti
from retroln.imaging.volume import Volume

SHAPE = (60, 60, 90)
BOX = {"start": [11, 10, 12], "stop": [49, 57, 75]}
BOX_SLICES = (slice(11, 49), slice(10, 57), slice(12, 75))
OPENED = "RETROLN_TEST_OPENED"
_CODE = 1000


class Ran(NamedTuple):
    """What a command gave: exit code and everything it printed."""

    code: int
    output: str


def retroln(*arguments: str | Path) -> Ran:
    """Run `retroln ARGUMENTS` in this process, with the exit code that `main` gives."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        return Ran(result.exception.exit_code, f"{result.output}error: {result.exception}\n")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.output)


def ct_hu(seed: int = 5) -> NDArray[np.int16]:
    """Noise over most of the range of CT, different for every seed; no tissue can be told in it."""
    values = np.random.default_rng(seed).integers(-900, 900, SHAPE)
    return np.asfortranarray(values.astype(np.int16))


def coded_ct(labels: NDArray[np.uint8], seed: int = 5) -> NDArray[np.int16]:
    """A CT in which `StandInSegmenter` finds these labels."""
    return np.asfortranarray(np.where(labels > 0, _CODE + labels.astype(np.int16), ct_hu(seed)))


def nodes(shift: int = 0) -> NDArray[np.uint8]:
    """One node of 18 voxels in the region and one of 4 of which 2 lie outside."""
    mask = np.zeros(SHAPE, np.uint8, order="F")
    mask[30 + shift : 33 + shift, 30:33, 40:42] = 1
    mask[47 + shift : 51 + shift, 30, 40] = 1
    return mask


def moved_spine(shift: int = 0, levels: tuple[Level, ...] = LEVEL_ORDER) -> NDArray[np.uint8]:
    """The blocks of `spine.py`, `shift` voxels further to the right."""
    return np.asfortranarray(np.roll(spine_labels(levels=levels), shift, axis=0))


def write(path: Path, array: NDArray[Any], orientation: str = "RAS") -> Path:
    """An array on the spine's grid as a file of another orientation."""
    nifti.write_source(path, reoriented(Volume(array, grid_ras(), grid_ras()), orientation))
    return path


def write_levels(folder: Path, labels: NDArray[np.uint8], orientation: str = "RAS") -> Path:
    """One file per level, an empty one for a level that is absent: what the predecessor's tool left."""
    for level in LEVEL_ORDER:
        mask = (labels == V2[level]).astype(np.uint8)
        write(folder / f"vertebrae_{level}.nii.gz", mask, orientation)
    return folder


class Folders(NamedTuple):
    """Where a cohort's CTs, vertebrae and masks lie, and where results go."""

    ct: Path
    vertebrae: Path
    masks: Path
    out: Path

    @classmethod
    def below(cls, root: Path) -> Folders:
        """Folders of their own in `root`."""
        return cls(*(root / name for name in ("ct", "vertebrae", "masks", "out")))

    def add(
        self, case_id: str, shift: int = 0, seed: int = 5, channel: str = "", ending: str = ".nii.gz"
    ) -> None:
        """A whole case; `shift` and `seed` tell it from others."""
        write(self.ct / f"{case_id}{channel}{ending}", ct_hu(seed))
        write(self.vertebrae / f"{case_id}.nii.gz", moved_spine(shift))
        write(self.masks / f"{case_id}.nii.gz", nodes(shift))

    def crop(self, *options: str | Path) -> Ran:
        """`retroln crop` over these folders."""
        places = ("--input-dir", self.ct, "--vertebrae-dir", self.vertebrae, "--mask-dir", self.masks)
        return retroln("crop", *places, "--output-dir", self.out, *options)

    def summary(self) -> dict[str, Any]:
        """What the last run left, which must balance."""
        content: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        parts = ("done", "skipped", "quarantined", "failed")
        assert content["in"] == sum(content[name] for name in parts) == len(content["cases"])
        return content

    def outcomes(self) -> dict[str, tuple[str, str | None]]:
        """Outcome and reason by case."""
        return {one["case_id"]: (one["outcome"], one["reason"]) for one in self.summary()["cases"]}

    def record(self, case_id: str) -> dict[str, Any]:
        """A crop's record."""
        content: dict[str, Any] = json.loads((self.out / f"{case_id}_roi.json").read_text())
        return content


class StandInResult(NamedTuple):
    """What the stand-in read, and that it is one."""

    vertebrae: Vertebrae
    findings: tuple[str, ...] = ("stand_in: levels read from codes in the CT",)


class StandInSegmenter:
    """Reads the levels that `coded_ct` wrote into the CT. No network: it says nothing about anatomy."""

    def segment(self, ct: Volume) -> StandInResult:
        """The levels."""
        labels = np.where(ct.array > _CODE, ct.array - _CODE, 0).astype(np.uint8)
        return StandInResult(Vertebrae.from_label_map(ct.with_array(labels), "totalseg-v2"))


def open_stand_in(quality: Quality, device: Device) -> StandInSegmenter:
    """Opens the stand-in and, where the variable says so, leaves a line about it."""
    if note := os.environ.get(OPENED):
        with Path(note).open("a") as stream:
            stream.write(f"{os.getpid()} {quality} {device}\n")
    return StandInSegmenter()
