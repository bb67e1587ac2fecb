"""Vertebrae for a folder of CT: one label map per case, judged by the gate that `crop` and `prepare` use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from retroln.anatomy import landmarks
from retroln.anatomy.segmenter import Device, OpenSegmenter, Quality, Segmented, Segmenter
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae
from retroln.errors import ConflictError, InputError, LandmarkError, UserError, naming
from retroln.files import sha256_json
from retroln.imaging import nifti
from retroln.imaging.geometry import require_same_grid
from retroln.imaging.volume import Volume
from retroln.settings import Settings, TotalSegSpec
from retroln.steps.folder_listing import FolderCase, Listing, list_cts, require_apart, shown
from retroln.steps.folders import Result, ToolError

if TYPE_CHECKING:
    from retroln.anatomy.totalseg_weights import Weights

_RECIPE = 1  # goes up when the same CT and options give another label map than before


@dataclass(frozen=True)
class LandmarksTool:
    """What `retroln.steps.folders.run_folder` does with each case.

    Attributes:
        open_segmenter: loads the networks, once in each process; a function at module level.
        device: does not decide the result: a case done on one is not done again on another.
        per_level: `<id>/vertebrae_<LEVEL>.nii.gz`, one file for each level that was found, instead of
            `<id>.nii.gz` with the ids of `totalseg-v2`.
        networks: stands for the networks and how they are used, by a hash; with others cases are done anew.
    """

    output_dir: Path
    open_segmenter: OpenSegmenter
    quality: Quality = "full"
    device: Device = "auto"
    per_level: bool = False
    networks: str | None = None

    @property
    def command(self) -> str:
        """Name of the command."""
        return "landmarks"

    def list_cases(self, input_dir: Path, pattern: str = "*") -> Listing:
        """Every CT of a folder.

        Raises:
            NotFoundError: no such folder, or no CT in it.
            UserError: the results would go where the input comes from.
        """
        require_apart(self.output_dir, input_dir, nested="/" in pattern)
        return list_cts(input_dir, pattern)

    def options(self) -> dict[str, Any]:
        """All that decides a label map beside the CT."""
        return {
            "recipe": _RECIPE,
            "quality": self.quality,
            "per_level": self.per_level,
            "networks": self.networks,
        }

    def work(self, case: FolderCase) -> Result:
        """Find the vertebrae of one case and judge them; what is implausible is written and held.

        Raises:
            InputError: the CT cannot be used.
            ToolError: the segmenter cannot work on this machine.
        """
        ct = nifti.read_ct(case.parts["ct"])
        with naming(case.parts["ct"]):
            found = self._segmented(ct)
        spine = found.vertebrae
        require_same_grid(ct.grid, spine.grid, what="result of the segmenter")
        outputs = self._write(case.case_id, spine, ct)
        facts: dict[str, Any] = {
            "findings": list(found.findings),
            "ribs_at_t12": spine.ribs_at_t12,
            "levels": {v.level: v.voxels for v in spine.levels.values()},
        }
        try:
            with landmarks.naming_inputs(case.parts["ct"], self._target(case.case_id)):
                judged = landmarks.assess(spine, unanchored="accept", ct=ct)
        except LandmarkError as error:
            return Result(outputs, facts, held=error)
        facts["findings"] += judged.findings
        truncated = [level.value for level in judged.truncated]
        judgement = {"rung": judged.rung, "anchored": judged.anchored, "truncated": truncated}
        return Result(outputs, facts | judgement)

    def _segmented(self, ct: Volume) -> Segmented:
        """What is found; anything but an unusable CT that keeps the segmenter from working ends the run."""
        try:
            return _opened(self.open_segmenter, self.quality, self.device).segment(ct)
        except InputError:
            raise
        except UserError as error:
            raise ToolError(error) from error

    def _target(self, case_id: str) -> Path:
        return self.output_dir / (case_id if self.per_level else f"{case_id}.nii.gz")

    def _write(self, case_id: str, spine: Vertebrae, ct: Volume) -> tuple[Path, ...]:
        target = self._target(case_id)
        if self.per_level:
            return _write_levels(target, spine, ct)
        nifti.write_source(target, ct.with_array(spine.to_label_map()))
        return (target,)


@dataclass(frozen=True, eq=False)
class _TotalSeg:
    """TotalSegmentator on one machine, with its weights there."""

    weights: Weights
    spec: TotalSegSpec

    def segment(self, ct: Volume) -> Segmented:
        from retroln.anatomy.totalseg_vertebrae import segment

        return segment(ct, self.weights, self.spec)


def open_totalseg(quality: Quality, device: Device) -> Segmenter:
    """TotalSegmentator with the weights that settings pin (docs/howto/weights.md), brought to this machine.

    Raises:
        UserError: as `retroln.steps.weights_copy.fetch`.
    """
    from retroln.steps.weights_copy import fetch

    settings = _settings(quality, device)
    return _TotalSeg(fetch(settings), settings.totalseg)


def networks(quality: Quality) -> str:
    """Hash of all that decides TotalSegmentator's labels beside the CT: `networks` of a tool that uses it."""
    from retroln.anatomy.totalseg import VERSION

    spec = _settings(quality, "auto").totalseg
    return sha256_json([VERSION, spec.weights, spec.quality, spec.ribs, spec.refine, *spec.added()])


def _settings(quality: Quality, device: Device) -> Settings:
    settings = Settings()
    changes = {"quality": quality, "device": device}
    spec = settings.totalseg.model_copy(update=changes)
    return settings.model_copy(update={"landmarks": "totalseg", "totalseg": spec})


@lru_cache(maxsize=1)
def _opened(open_segmenter: OpenSegmenter, quality: Quality, device: Device) -> Segmenter:
    """One segmenter for all the cases of a process: loading costs more than many a case."""
    return open_segmenter(quality, device)


def _write_levels(target: Path, spine: Vertebrae, ct: Volume) -> tuple[Path, ...]:
    """One file for each level that was found, in a folder that is whole or absent; none without levels.

    Raises:
        ConflictError: the folder is there and holds something else.
    """
    _require_only_levels(target)
    with TemporaryDirectory(prefix=".partial-", dir=target.parent) as scratch:
        folder = Path(scratch, "new")
        folder.mkdir()
        for vertebra in spine.levels.values():
            mask = np.zeros(ct.grid.shape, np.uint8, order="F")
            mask[vertebra.box.slices] = vertebra.mask
            nifti.write_source(folder / _level_name(vertebra.level), ct.with_array(mask))
        if target.exists():
            target.rename(Path(scratch, "old"))
        if spine.levels:
            folder.rename(target)
    return tuple(target / _level_name(level) for level in spine.levels)


def _level_name(level: Level) -> str:
    return f"vertebrae_{level}.nii.gz"


def _require_only_levels(folder: Path) -> None:
    own = {_level_name(level) for level in LEVEL_ORDER}
    others = sorted({path.name for path in folder.iterdir()} - own) if folder.exists() else []
    if others:
        raise ConflictError(
            "the case's folder holds files that this command did not write",
            file=folder,
            expected=", ".join(sorted(own)),
            got=shown(others),
            fix="move the folder away, or name another --output-dir",
        )
