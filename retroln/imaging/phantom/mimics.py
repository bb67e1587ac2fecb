"""Bowel and everything small that passes for a node in one slice: tubes, crura, adrenals, loops."""

from __future__ import annotations

import numpy as np

from retroln.imaging.phantom.canvas import Part
from retroln.imaging.phantom.organs import Habitus, Kidney, flat
from retroln.imaging.phantom.shapes import Point, moved, smooth, tube
from retroln.imaging.phantom.spine import Spine
from retroln.imaging.phantom.vessels import Course


def bowel_parts(rng: np.random.Generator, spine: Spine, habitus: Habitus, hu: dict[str, float]) -> list[Part]:
    """Colon with gas and stool, then small-bowel loops that fill the front of the cavity."""
    parts: list[Part] = []
    for path, radius in _colon(rng, spine, habitus):
        parts += _gut(
            path, radius, hu["bowel_wall"], float(rng.uniform(-60, 30)), float(rng.uniform(0.45, 0.75))
        )
    for _ in range(44):
        path = _loop(rng, spine, habitus)
        gas = float(rng.uniform(0.3, 0.6)) if rng.uniform() < 0.25 else 0.0
        parts += _gut(path, float(rng.uniform(9, 14)), hu["bowel_wall"], float(rng.uniform(5, 70)), gas)
    for _ in range(45):
        start = _front_point(rng, spine, habitus)
        path = np.cumsum(np.vstack([start, rng.normal(0, 7, (6, 3))]), 0)
        parts += flat(
            tube(habitus.inside(smooth(path, 3), 4.0), float(rng.uniform(1.0, 2.4))), hu["small_vein"]
        )
    return parts


def _colon(rng: np.random.Generator, spine: Spine, habitus: Habitus) -> list[tuple[Point, float]]:
    (wide, deep), front = habitus.cavity_half_mm, habitus.centre[1]
    low, high = float(spine.centres[0][2]) - 25, float(spine.centres[4][2])
    back, fore = front - deep * 0.05, front + deep * 0.72
    right = [(wide * 0.74, back + rng.uniform(-8, 12), z) for z in np.linspace(low, high - 35, 5)]
    left = [(-wide * 0.77, back + rng.uniform(-12, 8), z) for z in np.linspace(low, high + 5, 5)]
    sag = float(rng.uniform(20, 60))
    across = [
        (wide * 0.6 * c, fore - 8 * c * c, high - 25 - sag * (1 - c * c)) for c in np.linspace(1, -1, 6)
    ]
    return [(smooth(right), 23.0), (smooth(left), 16.0), (smooth(across), 19.0)]


def _front_point(rng: np.random.Generator, spine: Spine, habitus: Habitus) -> Point:
    """A point in the peritoneal part of the cavity, at least 45 mm before the spine."""
    (wide, deep), front = habitus.cavity_half_mm, habitus.centre[1]
    level = float(rng.uniform(0, 4.2))
    start = spine.front(level)
    x = float(rng.uniform(-0.6, 0.6)) * wide
    near = start[1] + 32 - 18 * min(abs(x) / 60, 1)
    far = front + deep * (0.86 - 0.4 * (x / wide) ** 2)
    return np.array([x, rng.uniform(near, max(far, near + 5)), start[2]])


def _loop(rng: np.random.Generator, spine: Spine, habitus: Habitus) -> Point:
    knots = [_front_point(rng, spine, habitus)]
    direction = rng.normal(0, 1, 3)
    for _ in range(4):
        direction = direction / np.linalg.norm(direction) + rng.normal(0, 0.55, 3)
        knots.append(knots[-1] + 20 * direction / np.linalg.norm(direction) * [1, 0.45, 0.8])
    return habitus.inside(smooth(knots, 3), 14.0)


def _gut(path: Point, radius: float, wall_hu: float, content_hu: float, gas: float) -> list[Part]:
    """Wall, content, and gas that rises to the front (the patient lies on the back)."""
    wave = radius * (1 + 0.09 * np.sin(np.arange(len(path)) * 1.9))
    parts = flat(tube(path, wave.tolist()), wall_hu)
    parts += flat(tube(path, (wave - 2.3).tolist()), content_hu)
    if gas:
        inner = (wave - 2.6) * gas
        parts += flat(tube(path + [0, 1, 0] * ((wave - 2.6) * (1 - gas))[:, None], inner.tolist()), -930.0)
    return parts


def mimic_parts(
    rng: np.random.Generator,
    spine: Spine,
    kidneys: tuple[Kidney, Kidney],
    courses: dict[str, Course],
    hu: dict[str, float],
) -> list[Part]:
    """Tubes across the retroperitoneum, some enhanced, and node-sized soft tissue beside vessels."""
    parts = [*_crura(rng, courses, spine, hu), *_duodenum(rng, courses, spine, hu)]
    for kidney in kidneys:
        side = float(np.sign(kidney.hilum[0]))
        parts += flat(
            tube(_descent(rng, spine, kidney.hilum, side, 40.0), float(rng.uniform(1.8, 3.4))),
            hu["ureter"],
            solid=True,
        )
        start = moved(kidney.hilum, -side * 8, 8, -12)
        vein = hu["small_vein"] + float(rng.normal(0, 12))
        parts += flat(
            tube(_descent(rng, spine, start, side, 33.0, ahead=6), float(rng.uniform(1.4, 3.8))),
            vein,
            solid=True,
        )
        parts += _adrenal(rng, kidney, side, hu)
    parts += _knuckles(rng, spine, courses, hu)
    return parts


def _descent(
    rng: np.random.Generator, spine: Spine, start: Point, side: float, out_mm: float, ahead: float = 0
) -> Point:
    """From the hilum down before the psoas to the pelvic brim."""
    knots = [start]
    for level in (3.0, 2.0, 1.0, 0.0):
        front = spine.front(level)
        if front[2] < start[2] - 15:
            knots.append(
                np.array(
                    [side * (out_mm + rng.normal(0, 3)), front[1] - 2 + ahead + rng.normal(0, 2.5), front[2]]
                )
            )
    knots.append(knots[-1] + [side * 6, -18.0, -40])
    return smooth(knots, 4)


def _crura(
    rng: np.random.Generator, courses: dict[str, Course], spine: Spine, hu: dict[str, float]
) -> list[Part]:
    parts: list[Part] = []
    for side, last in ((-1.0, 4.3), (1.0, 3.6)):
        knots = []
        for level in np.arange(8.0, last, -0.9):
            front = spine.front(level)
            up = max(level - 7, 0) * 30
            centre, radius = courses["aorta"].at(float(front[2]) + up)
            drift = (level - last) / (8 - last)
            knots.append(moved(centre, side * (radius + 5.0), -4.0 - 5 * (1 - drift), 0))
        path = smooth(knots, 4)
        radii = np.linspace(5.0, 2.5, len(path)) * rng.uniform(0.8, 1.2)
        parts += flat(tube(path, radii.tolist()), hu["muscle"] + 3, solid=True)
    return parts


def _duodenum(
    rng: np.random.Generator, courses: dict[str, Course], spine: Spine, hu: dict[str, float]
) -> list[Part]:
    """Second to fourth part: down beside the cava, across before both vessels at L3, up on the left."""
    level = float(rng.uniform(2.7, 3.2))
    cross = float(spine.front(level)[2])
    a, ra = courses["aorta"].at(cross)
    v, rv = courses["inferior_vena_cava"].at(cross)
    r = float(rng.uniform(7.5, 10.5))
    ahead = max(a[1] + ra, v[1] + rv) + r + float(rng.uniform(2, 7))
    side = v[0] + rv + r + 12
    knots = np.array(
        [
            (side - 4, ahead + 6, cross + 62),
            (side, ahead, cross + 30),
            (side - 6, ahead - 2, cross + 6),
            (v[0], ahead, cross),
            (a[0], ahead, cross + 3),
            (a[0] - 26, ahead + 1, cross + 16),
            (a[0] - 34, ahead + 12, cross + 38),
        ]
    )
    path = smooth(knots, 4)
    gas = 0.45 if rng.uniform() < 0.3 else 0.0
    gut = _gut(path, r, hu["bowel_wall"], float(rng.uniform(10, 60)), gas)
    return [Part(part.shape, part.hu, solid=part.hu == hu["bowel_wall"]) for part in gut]


def _adrenal(rng: np.random.Generator, kidney: Kidney, side: float, hu: dict[str, float]) -> list[Part]:
    apex = kidney.centre + kidney.rotation @ np.array([-side * 12.0, 8.0, kidney.radii_mm[2] * 0.9])
    limbs = [
        [apex, moved(apex, side * 9, -13, -10)],
        [apex, moved(apex, -side * 3, -15, -9)],
        [apex, moved(apex, 0, 5, 3)],
    ]
    radius = float(rng.uniform(2.0, 3.2))
    return [part for limb in limbs for part in flat(tube(limb, radius), hu["gland"], solid=True)]


def _knuckles(
    rng: np.random.Generator, spine: Spine, courses: dict[str, Course], hu: dict[str, float]
) -> list[Part]:
    """Collapsed bowel beside the vessels, round in one slice but long along its way; lumbar veins."""
    parts: list[Part] = []
    for _ in range(int(rng.integers(1, 3))):
        level, side = float(rng.uniform(0.6, 4.2)), float(rng.choice([-1.0, 1.0]))
        front = spine.front(level)
        start = moved(front, side * rng.uniform(30, 58), rng.uniform(14, 34), 0)
        direction = rng.normal(0, 1, 3) * [0.5, 0.6, 1.2] + [side * 0.5, 0.6, 0]
        way = np.cumsum(
            np.vstack([start, direction / np.linalg.norm(direction) * 14 + rng.normal(0, 3, (3, 3))]), 0
        )
        parts += flat(
            tube(smooth(way, 3), float(rng.uniform(4.5, 8.5))),
            hu["bowel_wall"] + float(rng.normal(-8, 10)),
            solid=True,
        )
    for level in (4, 3, 2):
        for name in ("aorta", "inferior_vena_cava"):
            middle, _ = courses[name].at(float(spine.centres[level][2]))
            side = float(np.sign(middle[0]))
            round_ = spine.centres[level] + [side * (spine.half_mm[level, 0] + 4), 2, 0]
            parts += flat(
                tube([middle, (middle + round_) / 2 + [side * 6, 0, 0], round_], 1.3), hu["small_vein"]
            )
    return parts
