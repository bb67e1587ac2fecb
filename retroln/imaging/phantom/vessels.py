"""Great vessels: aorta, inferior vena cava, iliac arteries and veins, and their branches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retroln.imaging.phantom.canvas import Part
from retroln.imaging.phantom.shapes import Point, Segment, moved, smooth, tube
from retroln.imaging.phantom.spine import Spine

VESSEL_IDS = {
    "aorta": 52,
    "inferior_vena_cava": 63,
    "iliac_artery_left": 65,
    "iliac_artery_right": 66,
    "iliac_vena_left": 67,
    "iliac_vena_right": 68,
}
"""TotalSegmentator v2 `class_map["total"]`."""


@dataclass(frozen=True, eq=False)
class Course:
    """A vessel's centre line (n, 3), top to bottom, and its radius at each point."""

    points: Point
    radii_mm: Point

    def at(self, z_mm: float) -> tuple[Point, float]:
        """Centre and radius where the vessel crosses the height `z_mm` (clamped to its ends)."""
        order = np.argsort(self.points[:, 2])
        z = self.points[order, 2]
        centre = np.array([np.interp(z_mm, z, self.points[order, axis]) for axis in range(3)])
        return centre, float(np.interp(z_mm, z, self.radii_mm[order]))

    def segments(self) -> list[Segment]:
        """The course as shapes."""
        return tube(self.points, self.radii_mm.tolist())


def make_courses(rng: np.random.Generator, spine: Spine) -> dict[str, Course]:
    """Courses by name; the aorta divides at about L4, the cava forms at about L4/L5."""
    calibre = float(rng.uniform(0.85, 1.2))
    left, right = -float(rng.uniform(7, 13)), float(rng.uniform(17, 23))
    gap, fork = float(rng.uniform(3.0, 8.0)), float(rng.uniform(1.7, 2.2))
    sway, bow = rng.normal(0, 1.2, 10), float(rng.uniform(0, 5))
    a_radius, v_radius = 9.0 * calibre, 10.0 * float(rng.uniform(0.85, 1.15))

    aorta_levels = [*np.arange(8.5, fork, -1.0), fork]
    aorta = [
        moved(spine.front(level), left * _ease(level, fork) + 0.6 * sway[i], a_radius + gap, _above(level))
        for i, level in enumerate(aorta_levels)
    ]
    low = fork - 0.55
    cava_levels = [*np.arange(8.5, low, -1.0), low]
    cava = [
        moved(
            spine.front(level),
            right + 0.5 * sway[-1 - i],
            v_radius + gap - 3 + max(level - 4, 0) * (2 + bow),
            _above(level),
        )
        for i, level in enumerate(cava_levels)
    ]
    courses = {
        "aorta": _course(aorta, np.linspace(1.12, 0.86, len(aorta)) * a_radius),
        "inferior_vena_cava": _course(cava, np.linspace(1.15, 0.95, len(cava)) * v_radius),
    }
    for side, name in ((-1.0, "left"), (1.0, "right")):
        courses[f"iliac_artery_{name}"] = _course(_iliac(spine, aorta[-1], side, 0.0), [6.2 * calibre] * 4)
        courses[f"iliac_vena_{name}"] = _course(_iliac(spine, cava[-1], side, -13.0), [v_radius * 0.72] * 4)
    return courses


def _ease(level: float, fork: float) -> float:
    """The aorta nears the midline towards its end."""
    return float(np.interp(level, [fork, fork + 2], [0.45, 1.0]))


def _above(level: float) -> float:
    """Height beyond T11's centre, where the spine model ends."""
    return max(level - 7, 0) * 30.0


def _course(knots: list[Point], radii: Point | list[float]) -> Course:
    path = smooth(knots, 4)
    return Course(path, np.interp(np.linspace(0, 1, len(path)), np.linspace(0, 1, len(radii)), radii))


def _iliac(spine: Spine, start: Point, side: float, back_mm: float) -> list[Point]:
    """From the fork along the psoas' inner border to the pelvic brim."""
    low = spine.front(0.5)
    brim = np.array([side * 42.0, low[1] - 4.0 + back_mm, low[2] - 6.0])
    middle = 0.55 * start + 0.45 * brim + np.array([-side * 2.0, 8.0 + 0.15 * back_mm, 3.0])
    exit_ = brim + np.array([side * 20.0, -6.0, -48.0])
    return [np.asarray(start), middle, brim, exit_]


def great_vessel_parts(courses: dict[str, Course], hu: dict[str, float]) -> list[Part]:
    """Veins first, then arteries, as the right iliac artery crosses in front of the left vein."""
    parts: list[Part] = []
    for name in (
        "iliac_vena_left",
        "iliac_vena_right",
        "inferior_vena_cava",
        "iliac_artery_left",
        "iliac_artery_right",
        "aorta",
    ):
        value = hu["aorta"] if "arter" in name or name == "aorta" else hu["cava"]
        parts += [
            Part(s, value, None, 0.0, "vessels", VESSEL_IDS[name], solid=True)
            for s in courses[name].segments()
        ]
    return parts


def branch_parts(
    rng: np.random.Generator, courses: dict[str, Course], hila: tuple[Point, Point], hu: dict[str, float]
) -> list[Part]:
    """Renal arteries and veins, superior mesenteric artery and vein, inferior mesenteric artery."""
    aorta, cava = courses["aorta"], courses["inferior_vena_cava"]
    parts: list[Part] = []
    for hilum in hila:
        top = float(hilum[2]) + float(rng.uniform(2, 9))
        a, _ = aorta.at(top)
        v, wide = cava.at(top - 3)
        behind = [0, -9.0, 0] if hilum[0] > 0 else [0, 1.0, 0]
        parts += _pipe([a, (a + hilum) / 2 + behind, hilum], float(rng.uniform(2.3, 3.2)), hu["aorta"])
        start = v if hilum[0] > 0 else moved(v, -wide * 0.5, 2, 0)
        over = [(a[0] + 2), a[1] + 14.5, top - 3] if hilum[0] < 0 else list((v + hilum) / 2)
        vein = (
            [start, np.array(over), 0.4 * a + 0.6 * hilum + [0, 4.0, 0], hilum]
            if hilum[0] < 0
            else [start, np.array(over), hilum]
        )
        parts += _pipe(vein, float(rng.uniform(3.6, 5.2)), hu["renal_vein"])
    parts += _mesenteric(rng, aorta, hila, hu)
    return parts


def _mesenteric(
    rng: np.random.Generator, aorta: Course, hila: tuple[Point, Point], hu: dict[str, float]
) -> list[Part]:
    height = float(max(hilum[2] for hilum in hila))
    sma = [
        aorta.at(height + 16)[0] + o
        for o in ([0, 0, 0], [1, 19, -4], [3, 28, -30], [8, 38, -70], [20, 42, -105])
    ]
    smv = [moved(p, 13, 3, 0) for p in sma[1:]]
    ima = [
        aorta.at(height - 48)[0] + o
        for o in ([0, 0, 0], [-7, 12, -10], [-17, 10, -32], [-24, 4, -75], [-20, -6, -110])
    ]
    imv = [aorta.at(height)[0] + o for o in ([-20, 22, 0], [-25, 14, -40], [-31, 9, -80])]
    return [
        *_pipe(sma, 3.6, hu["aorta"]),
        *_pipe(smv, float(rng.uniform(4.5, 6)), hu["renal_vein"]),
        *_pipe(ima, float(rng.uniform(1.6, 2.4)), hu["aorta"]),
        *_pipe(imv, float(rng.uniform(1.8, 3.0)), hu["small_vein"]),
    ]


def _pipe(knots: list[Point], radius: float, hu: float, *, solid: bool = True) -> list[Part]:
    return [Part(s, hu, solid=solid) for s in tube(smooth(knots, 4), radius)]
