"""The spine T11 to S1: lordosis, bodies, discs, posterior elements, and the two lowest ribs.

Sizes follow adult lumbar morphometry (Panjabi 1992, Spine 17:299; Zhou 2000, Eur Spine J 9:242):
bodies 44-54 mm wide, 32-36 mm deep, 23-29 mm high, discs 5-11 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retroln.imaging.phantom.canvas import Part, Target
from retroln.imaging.phantom.shapes import Barrel, Ellipsoid, Point, Shape, smooth, tube, turn
from retroln.imaging.phantom.spec import USUAL_NAMES, Variant

LEVELS = USUAL_NAMES
LEVEL_IDS = dict(zip(LEVELS, range(26, 34), strict=True))
RIB_12_IDS = (103, 115)
"""TotalSegmentator v2 ids of the left and the right 12th rib."""
_TILT_DEG = np.array([36.0, 20.0, 8.0, -1.0, -7.0, -11.0, -13.0, -12.0])
_HEIGHT_MM = np.array([28.0, 28.5, 28.5, 28.5, 28.0, 27.5, 26.0, 25.0])
_DISC_MM = np.array([9.5, 10.5, 10.0, 9.0, 8.0, 6.0, 5.0])
_HALF_WIDTH_MM = np.array([25.5, 27.0, 26.0, 25.0, 24.0, 23.0, 22.0, 21.0])
_HALF_DEPTH_MM = np.array([17.0, 18.5, 18.5, 18.5, 18.0, 17.5, 17.0, 16.5])


@dataclass(frozen=True, eq=False)
class Spine:
    """Body centres (8, 3), frames (8, 3, 3; columns right, anterior, up) and half sizes (8, 3).

    Levels run upwards as in `LEVELS`, which are the names of the usual spine; see `PhantomSpec.variant`.
    """

    centres: Point
    frames: Point
    half_mm: Point
    scale: float
    cancellous_hu: float
    fused_l2: bool
    variant: Variant = "usual"

    @property
    def with_transverse(self) -> range:
        """Vertebrae with the long transverse processes of the lumbar spine."""
        first = 2 if self.variant == "sacralised_l5" else 1
        return range(first, {"l6": 7, "lumbar_rib": 5}.get(self.variant, 6))

    @property
    def with_wings(self) -> range:
        """Vertebrae that are part of the sacrum."""
        return range(2 if self.variant == "sacralised_l5" else 1)

    @property
    def rib_12_at(self) -> int:
        """The vertebra that bears the 12th ribs."""
        return 7 if self.variant == "l6" else 6

    def front(self, level: float) -> Point:
        """Midpoint of the anterior surface at a (fractional) level index into `LEVELS`."""
        fronts = self.centres + self.frames[:, :, 1] * self.half_mm[:, 1:2]
        index = np.arange(len(LEVELS))
        return np.array([np.interp(level, index, fronts[:, axis]) for axis in range(3)])


def make_spine(rng: np.random.Generator, *, fused_l2: bool, variant: Variant = "usual") -> Spine:
    """A spine whose L3 body centre is the world anatomy's origin."""
    scale = float(rng.uniform(0.93, 1.08))
    lordosis = float(rng.uniform(0.65, 1.2))
    tilts = _TILT_DEG * lordosis + rng.normal(0, 1.0, 8)
    heights = _HEIGHT_MM * scale * (1 + rng.normal(0, 0.015, 8))
    discs = _DISC_MM * scale * rng.uniform(0.75, 1.1) * (1 + rng.normal(0, 0.06, 7))
    side = np.cumsum(rng.normal(0, 0.8, 8))
    frames = np.stack([turn(pitch_deg=-tilt) for tilt in tilts])
    centres = np.zeros((8, 3))
    for i in range(7):
        up = (
            frames[i, :, 2] * (heights[i] + discs[i]) / 2
            + frames[i + 1, :, 2] * (heights[i + 1] + discs[i]) / 2
        )
        centres[i + 1] = centres[i] + up
    centres[:, 0] += side
    half = np.stack([_HALF_WIDTH_MM * scale, _HALF_DEPTH_MM * scale, heights / 2], 1)
    hu = float(rng.uniform(130, 230))
    return Spine(centres - centres[3], frames, half, scale, hu, fused_l2, variant)


def renamed(labels: NDArray[np.uint8], names: tuple[str, ...]) -> NDArray[np.uint8]:
    """The label map with other names for the vertebrae of `LEVELS`; "" takes a vertebra out."""
    value = np.arange(256, dtype=np.uint8)
    for usual, name in zip(LEVELS, names, strict=True):
        value[LEVEL_IDS[usual]] = LEVEL_IDS[name] if name else 0
    return np.asarray(value[labels])


def spine_parts(spine: Spine) -> list[Part]:
    """Discs, canal and vertebrae in paint order; label S1 includes the top of the sacral wings."""
    parts = [*_beyond(spine), *(Part(shape, 25.0) for shape in _canal(spine))]
    for i in range(7):
        parts.append(_disc(spine, i))
    for i, level in enumerate(LEVELS):
        label = LEVEL_IDS["L2"] if spine.fused_l2 and level == "L3" else LEVEL_IDS[level]
        parts += [_bone(shape, spine, label) for shape in _posterior(spine, i)]
        parts += [_bone(shape, spine, label) for shape in (_wings(spine, i) if i in spine.with_wings else [])]
        body = Barrel(spine.centres[i], spine.frames[i], tuple(spine.half_mm[i]), 0.1)
        parts.append(_bone(body, spine, label))
    return parts


def _beyond(spine: Spine) -> list[Part]:
    """Unlabelled neighbours: T10, T9 above and the sacrum from S2 down."""
    parts = []
    for level, step, pitch in ((7, 1, 0.0), (7, 2, -2.0), (0, -1, 14.0), (0, -2, 26.0)):
        frame = spine.frames[level] @ turn(pitch_deg=-pitch)
        shift = frame[:, 2] * step * (28.0 if step > 0 else 24.0) * spine.scale
        shrink = 0.95**step if step > 0 else 0.8**-step
        half = spine.half_mm[level] * [shrink, shrink, 1.0 if step > 0 else 0.9]
        body = Barrel(spine.centres[level] + shift, frame, (half[0], half[1], half[2]), 0.1)
        parts.append(Part(body, spine.cancellous_hu, 430.0, 1.3, solid=True))
        if step > 0:
            tip = body.centre - frame @ np.array([0, 52.0, 18.0]) * spine.scale
            parts.append(Part(Ellipsoid.of(tip, (4.0, 18.0, 10.0), frame), 180.0, 420.0, 1.3))
    return parts


def _bone(shape: Shape, spine: Spine, label: int) -> Part:
    return Part(shape, spine.cancellous_hu, 430.0, 1.3, "vertebrae", label, solid=True)


def _disc(spine: Spine, i: int) -> Part:
    low, high = (
        spine.centres[k] + sign * spine.frames[k, :, 2] * spine.half_mm[k, 2]
        for k, sign in ((i, 1), (i + 1, -1))
    )
    half = (
        spine.half_mm[i, 0] * 0.98,
        spine.half_mm[i, 1] * 1.0,
        float(np.linalg.norm(high - low)) / 2 + 1.5,
    )
    shape = Barrel((low + high) / 2, turn(pitch_deg=-_pitch(spine, i)), half, -0.03)
    if spine.fused_l2 and LEVELS[i] == "L3":
        return _bone(shape, spine, LEVEL_IDS["L2"])
    if i + 1 in spine.with_wings:  # the sacrum has grown one segment higher
        return Part(shape, spine.cancellous_hu, 430.0, 1.3, solid=True)
    return Part(shape, 85.0, solid=True)


def _pitch(spine: Spine, i: int) -> float:
    up = spine.frames[i, :, 2] + spine.frames[i + 1, :, 2]
    return float(np.degrees(np.arctan2(up[1], up[2])))


def _canal(spine: Spine) -> list[Shape]:
    behind = spine.centres - spine.frames[:, :, 1] * (spine.half_mm[:, 1:2] + 6.5)
    behind = np.vstack([behind, behind[-1] + 60 * spine.frames[-1, :, 2]])
    return [*tube(behind, 7.5 * spine.scale)]


def _posterior(spine: Spine, i: int) -> list[Shape]:
    """Pedicles, laminae, transverse, articular and spinous processes in the body's frame."""
    s, deep = spine.scale, spine.half_mm[i, 1] / spine.scale
    lumbar = i in spine.with_transverse

    def at(right: float, behind: float, up: float) -> Point:
        local = np.array([right, -deep - behind, up]) * s
        return np.asarray(spine.centres[i] + spine.frames[i] @ local)

    shapes: list[Shape] = []
    for side in (-1.0, 1.0):
        x = side * (14.0 if lumbar else 13.0)
        shapes += tube([at(x, -6, 5), at(x, 8, 4)], [6.2 * s, 5.6 * s])
        shapes += tube(
            [at(x, 9, 4), at(side * 8, 17, -3), at(side * 1.5, 21, -8)], [5.6 * s, 5.0 * s, 4.4 * s]
        )
        shapes += tube(
            [at(x * 1.1, 11, 16), at(x * 1.15, 12, -1), at(x * 0.95, 15, -15)], [5.0 * s, 7.0 * s, 5.8 * s]
        )
        reach = 40.0 if lumbar else 28.0
        if i not in spine.with_wings:
            shapes += tube([at(x, 9, 4), at(side * reach, 16, 5)], [5.0 * s, 3.4 * s])
    length = (14, 18 if i in spine.with_wings else 26, 30, 32, 32, 31, 29, 30)[i]
    shapes.append(
        Ellipsoid.of(
            at(0, 21 + length / 2, -12 if lumbar else -16),
            (4.2 * s, (length / 2 + 3) * s, 10.5 * s),
            spine.frames[i] @ turn(pitch_deg=12),
        )
    )
    return shapes


def _wings(spine: Spine, i: int) -> list[Shape]:
    """The alae at the height of S1, or of an L5 that has become sacral."""
    out: list[Shape] = []
    for side in (-1, 1):
        centre = spine.centres[i] + spine.frames[i] @ (np.array([side * 29.0, -12.0, 0.0]) * spine.scale)
        radii = np.array([21.0, 13.0, 15.0]) * spine.scale
        out.append(Ellipsoid.of(centre, radii, spine.frames[i] @ turn(yaw_deg=side * 18)))
    return out


def rib_parts(
    spine: Spine, wall_half_mm: tuple[float, float], wall_centre: Point, labels: str = "none"
) -> list[Part]:
    """Ribs 8 to 12 on both sides: arcs along the trunk wall that sink as they run forward.

    A lumbar rib is a shorter pair below them. `labels` as in `PhantomSpec.rib_labels`; without, the 12th are
    drawn into the map of the ribs.
    """
    twelfth = spine.rib_12_at
    sweeps_deg = {1: 75.0, 0: 38.0, 2: 120.0, 3: 130.0, 4: 140.0}
    arcs = {twelfth + above: sweep for above, sweep in sweeps_deg.items()}
    if spine.variant == "lumbar_rib":
        arcs[twelfth - 1] = 18.0
    named = {"none": None, "twelfth": twelfth, "lowest": min(arcs)}[labels]
    parts: list[Part] = []
    for level, sweep in arcs.items():
        root = _rib_root(spine, level)
        target: Target = "vertebrae" if level == named else "ribs" if level == twelfth else ""
        for side, label in ((-1.0, RIB_12_IDS[0]), (1.0, RIB_12_IDS[1])):
            path = _rib_path(root, side, sweep, wall_half_mm, wall_centre)
            parts += [
                Part(shape, 180.0, 420.0, 1.6, target, label if target else 0, solid=True)
                for shape in tube(path, [4.5, *[5.0] * 15, 3.0])
            ]
    return parts


def _rib_root(spine: Spine, level: int) -> Point:
    above = max(level - 7, 0)
    top = spine.centres[min(level, 7)] + np.array([0, 0, 8.0])
    return np.asarray(top + np.array([0.0, -13.0 - 2 * above, 28.0 * above]))


def _rib_path(root: Point, side: float, sweep_deg: float, half: tuple[float, float], centre: Point) -> Point:
    """From beside the vertebra outwards to the wall, then along it; 17 points."""
    begin = np.radians(-62.0)
    angles = begin + np.radians(sweep_deg) * np.linspace(0, 1, 4)
    knots = [root + np.array([side * 17.0, 0, 0]), root + np.array([side * 42.0, -14.0, -4.0])]
    for angle, share in zip(angles[1:], (0.33, 0.67, 1.0), strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        x = side * half[0] * abs(cos) ** (1 / 1.2)
        y = half[1] * np.sign(sin) * abs(sin) ** (1 / 1.2)
        knots.append(np.array([centre[0] + x, centre[1] + y, root[2] - 12 - 55 * share * sweep_deg / 90]))
    return smooth(knots, 4)
