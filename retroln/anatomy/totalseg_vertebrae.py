"""T11-S1 in a CT by TotalSegmentator: which part to look at, and how the levels are numbered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retroln.anatomy.totalseg import Labelled, Labels, Scan, device_of
from retroln.anatomy.totalseg_weights import Weights
from retroln.anatomy.vertebrae import LUMBAR, REGION_LEVELS, Level, Vertebrae, scheme_ids
from retroln.errors import LandmarkError
from retroln.imaging.volume import Volume
from retroln.settings import TotalSegSpec

_LEVELS = scheme_ids("totalseg-v2")
_IDS = {level: value for value, level in _LEVELS.items()}
_VERTEBRAE = tuple(f"vertebrae_{level}" for level in _LEVELS.values())
_RIBS_12 = ("rib_left_12", "rib_right_12")
_SUM_OF_IDS = 51  # vertebrae_pp counts C1 = 1 to L5 = 24, total counts L5 = 27 to C1 = 50


@dataclass(frozen=True, eq=False)
class Segmented:
    """What TotalSegmentator found.

    Attributes:
        labels: the label map of task `total` on the CT's grid, uint8; only T11-S1 (and, where they were
            looked for, the 12th ribs) can be relied on to be there.
        vertebrae: T11-S1 in it.
        findings: `code: text`, what was done beyond the plain call.
    """

    labels: Volume
    vertebrae: Vertebrae
    findings: tuple[str, ...]


def segment(ct: Volume, weights: Weights, spec: TotalSegSpec) -> Segmented:
    """Find T11-S1 in a CT; the first call of a process imports TotalSegmentator and loads networks.

    `full` looks at the part of the scan that a rough network takes for the spine. If a vertebra touches the
    border of that part, or none or a gap is found in it, the part is chosen anew by the 3 mm network
    (TotalSegmentator's robust cropping).

    Args:
        ct: in Hounsfield units; any orientation and spacing.
        weights: a bundle that holds what `spec` needs.

    Raises:
        MissingExtraError: TotalSegmentator is not there in the right version.
        UserError: `spec.device` is "gpu" and there is none.
        NotFoundError, IntegrityError: a network's file is missing or has other bytes than recorded.
        LandmarkError: `landmarks_cut`, a level of the region ends at the border of the part looked at;
            `landmarks_implausible`, vertebrae_pp saw all vertebrae as one.
    """
    scan = Scan(ct, weights, device_of(spec.device))
    labels, findings = _fast(scan) if spec.quality == "fast" else _full(scan, spec)
    if spec.refine:
        labels, renumbered = renumber(labels, _bodies(scan))
        findings += renumbered
    if weights.manifest.stand_in:
        findings = (f"stand_in: {weights.manifest.stand_in}", *findings)
    volume = ct.with_array(labels)
    return Segmented(volume, Vertebrae.from_label_map(volume, "totalseg-v2"), findings)


def renumber(labels: Labels, bodies: Labels) -> tuple[Labels, tuple[str, ...]]:
    """Levels of task `total` numbered as task `vertebrae_pp` numbers their bodies.

    A voxel of a vertebra that lies in a body takes the body's number, the rest of it the number of most of
    its voxels that do. Nothing outside the vertebrae of `total` is labelled, and S1, which `vertebrae_pp`
    does not know, stays.

    Args:
        labels: task `total`, v2 ids.
        bodies: task `vertebrae_pp` on the same grid, 1 (C1) to 24 (L5).

    Returns:
        The labels, and a finding for each level that is called otherwise now.
    """
    numbers = np.where(bodies > 0, _SUM_OF_IDS - bodies.astype(np.int16), 0).astype(np.uint8)
    new, findings = labels.copy(), []
    for level, value in _IDS.items():
        if level is Level.S1:
            continue
        here = labels == value
        counts = np.bincount(numbers[here], minlength=256)
        counts[0] = 0
        if not counts.any():
            continue
        most = int(counts.argmax())
        inside = numbers[here]
        new[here] = np.where(inside > 0, inside, most)
        if most != value:
            findings.append(f"renumbered: {level} is {_LEVELS.get(most, most)} by vertebrae_pp")
    return new, tuple(findings)


def cut_levels(found: Labelled) -> list[Level]:
    """Levels with a voxel on a face of the part looked at that lies inside the scan, bottom to top."""
    if found.part is None:
        return []
    inside, touching = found.labels[found.part.slices], set[int]()
    for axis, (low, high) in enumerate(zip(found.part.start, found.part.stop, strict=True)):
        if low > 0:
            touching |= set(np.unique(inside.take(0, axis)).tolist())
        if high < found.labels.shape[axis]:
            touching |= set(np.unique(inside.take(-1, axis)).tolist())
    return [level for value, level in sorted(_LEVELS.items()) if value in touching]


def doubt(found: Labelled) -> str:
    """Why the part looked at may have been chosen wrongly; empty if nothing speaks for that."""
    present = sorted(set(np.unique(found.labels).tolist()) & set(_LEVELS))
    if not {_LEVELS[value] for value in present} & set(LUMBAR):
        return "no lumbar vertebra was found"
    if cut := cut_levels(found):
        return f"{', '.join(cut)} touched its border"
    return "a level was missing between two others" if present[-1] - present[0] >= len(present) else ""


def _bodies(scan: Scan) -> Labels:
    try:
        return scan.call(task="vertebrae_pp").labels
    except IndexError as error:  # its postprocessing breaks where touching labels make up one body
        raise LandmarkError(
            "TotalSegmentator's vertebrae_pp saw all vertebrae as one",
            reason="landmarks_implausible",
            expected="one body for each level",
            got=f"IndexError: {error}",
            fix="look at the CT, or set RETROLN_TOTALSEG__REFINE=0 and `retroln requeue CASE`",
        ) from error


def _fast(scan: Scan) -> tuple[Labels, tuple[str, ...]]:
    return scan.call(task="total", fast=True).labels, ()


def _full(scan: Scan, spec: TotalSegSpec) -> tuple[Labels, tuple[str, ...]]:
    subset = _VERTEBRAE + (_RIBS_12 if spec.ribs else ())
    found = scan.call(task="total", roi_subset=subset)
    if not (reason := doubt(found)):
        return found.labels, ()
    found = scan.call(task="total", roi_subset=subset, robust_crop=True)
    findings = [f"robust_crop: the part looked at was chosen again, because {reason}"]
    labels, cut = found.labels, cut_levels(found)
    if lost := [level for level in cut if level in REGION_LEVELS]:
        raise LandmarkError(
            f"{', '.join(lost)} ends at the border of the part that TotalSegmentator looked at",
            reason="landmarks_cut",
            expected="whole vertebrae",
            fix="deliver a corrected label map beside the CT, or set RETROLN_TOTALSEG__QUALITY=fast, which"
            " looks at the whole scan, and `retroln requeue CASE`",
        )
    for level in cut:  # T11 and S1 only confirm the others, and a part of them says nothing
        labels = np.where(labels == _IDS[level], np.uint8(0), labels)
        findings.append(f"left_out: {level} ends at the border of the part that TotalSegmentator looked at")
    return labels, tuple(findings)
