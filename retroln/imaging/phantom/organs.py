"""Trunk wall, muscles and solid organs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retroln.imaging.phantom.canvas import Part
from retroln.imaging.phantom.shapes import Ellipsoid, Point, Segment, Trunk, moved, smooth, tube, turn
from retroln.imaging.phantom.spine import Spine


@dataclass(frozen=True, eq=False)
class Habitus:
    """The trunk's section: half sizes (right, anterior) of skin, muscle wall and abdominal cavity."""

    centre: Point
    skin_centre: Point
    skin_half_mm: tuple[float, float]
    wall_half_mm: tuple[float, float]
    cavity_half_mm: tuple[float, float]

    def inside(self, path: Point, margin_mm: float) -> Point:
        """The path (n, 3) with what leaves the cavity, less a margin, pulled back onto its border."""
        half = np.asarray(self.cavity_half_mm) - margin_mm
        offset = path[:, :2] - self.centre[:2]
        reach = (np.abs(offset / half) ** 2.4).sum(1) ** (1 / 2.4)
        pulled = self.centre[:2] + offset / np.maximum(reach, 1)[:, None]
        return np.column_stack([pulled, path[:, 2]])


@dataclass(frozen=True, eq=False)
class Kidney:
    """One kidney: centre, half sizes, rotation, and the hilum facing the great vessels."""

    centre: Point
    radii_mm: Point
    rotation: Point
    hilum: Point


def make_habitus(rng: np.random.Generator, spine: Spine) -> Habitus:
    """From slim to stout; the skin of the back lies behind the muscles along the spine."""
    fat, wall = float(rng.uniform(8, 24)), float(rng.uniform(8, 12))
    wide, deep = float(rng.uniform(120, 134)), float(rng.uniform(74, 86))
    centre = np.array([0.0, deep - 40.0 * spine.scale, 0.0])
    bent = -float(spine.centres[:7, 1].min())
    front, back = deep + wall + fat, centre[1] + 76.0 * spine.scale + 5 + 0.5 * fat + 0.5 * bent
    skin = np.array([0.0, centre[1] + (front - back) / 2, 0.0])
    return Habitus(
        centre, skin, (wide + wall + fat, (front + back) / 2), (wide + wall, deep + wall), (wide, deep)
    )


def trunk_parts(habitus: Habitus, spine: Spine, hu: dict[str, float]) -> list[Part]:
    """Skin, subcutaneous fat, muscle wall, cavity fat, then the muscles along the spine."""
    skin = Trunk(habitus.skin_centre, habitus.skin_half_mm)
    parts = [
        Part(skin, hu["fat"], 20.0, 2.0),
        Part(Trunk(habitus.centre, habitus.wall_half_mm), hu["muscle"] - 5),
        Part(Trunk(habitus.centre, habitus.cavity_half_mm), hu["fat"]),
    ]
    scale = spine.scale
    for side in (-1.0, 1.0):
        for right, behind, radius in ((15, 55, 15), (34, 54, 20), (52, 48, 14)):
            shift = np.array([side * right, -behind, 0]) * scale
            radii = radius * scale * np.array([0.75, 0.9, 1, 1, 1, 0.95, 0.85, 0.75, 0.7])
            path = np.stack(_along(spine, 0, shift))
            path[:, 1] += (radius * scale - radii) * 1.5
            parts += [Part(s, hu["muscle"] - 8) for s in tube(path, radii.tolist())]
        quadratus = _along(spine, 1, np.array([side * 58 * scale, -30 * scale, 0]))[:5]
        parts += [Part(s, hu["muscle"] - 3) for s in tube(quadratus, [15, 13, 12, 10, 8])]
    return parts


def _along(spine: Spine, first: int, shift: Point) -> list[Point]:
    ends = spine.centres[-1] + [0, -4, 45.0]
    return [*(centre + shift for centre in spine.centres[first:]), ends + shift]


def psoas_parts(rng: np.random.Generator, spine: Spine, hu: dict[str, float]) -> list[Part]:
    """Both psoas muscles from T12 down along the pelvic brim, and the iliac wings beside them."""
    bulk, parts = float(rng.uniform(0.8, 1.15)) * spine.scale, []
    pelvis = spine.centres[0]
    for side in (-1.0, 1.0):
        out = np.array([74, 66, 54, 45, 39, 34, 31, 28]) * side * spine.scale
        knots = [
            spine.centres[max(i, 0)] * [0, 1, 1] + [out[i + 1], y, z]
            for i, (y, z) in enumerate(((14, -20), (0, 0), (-4, 0), (-8, 0), (-11, 0), (-13, 0)))
        ]
        knots.insert(0, pelvis * [0, 1, 1] + [out[0], 34, -62])
        radii = np.interp(np.arange(25), np.arange(0, 25, 4), np.array([19, 20, 20, 19, 15, 10, 5]) * bulk)
        parts += [Part(s, hu["muscle"]) for s in tube(smooth(knots, 4), radii.tolist())]
        parts += _pelvis_parts(pelvis * [0, 1, 1], side, hu)
    return parts


def _pelvis_parts(middle: Point, side: float, hu: dict[str, float]) -> list[Part]:
    """Gluteal muscle, iliacus and iliac wing of one side."""
    flare = turn(roll_deg=side * 22, yaw_deg=side * 34)
    upright = turn(yaw_deg=side * 34)
    gluteus = Ellipsoid.of(moved(middle, side * 102, -8, -44), (18, 48, 60), upright)
    iliacus = Ellipsoid.of(moved(middle, side * 79, 17, -34), (14, 42, 50), flare)
    wing = Ellipsoid.of(moved(middle, side * 90, 12, -30), (8, 54, 60), flare)
    return [
        Part(gluteus, hu["muscle"] - 6),
        Part(iliacus, hu["muscle"] - 4),
        Part(wing, 150.0, 480.0, 2.0, solid=True),
    ]


def make_kidneys(rng: np.random.Generator, spine: Spine) -> tuple[Kidney, Kidney]:
    """Left, then right (about 12 mm lower), upper poles towards the spine."""
    size = float(rng.uniform(0.88, 1.1))
    kidneys = []
    for side, drop in ((-1.0, float(rng.uniform(-4, 8))), (1.0, float(rng.uniform(6, 20)))):
        middle = spine.centres[4] + [side * rng.uniform(68, 76), rng.uniform(-14, -4), 10.0 - drop]
        rotation = turn(roll_deg=side * rng.uniform(8, 16), yaw_deg=-side * rng.uniform(15, 35))
        radii = np.array([27.0, 26.0, 54.0]) * size * (1 + rng.normal(0, 0.04, 3))
        hilum = middle + rotation @ np.array([-side * (radii[0] - 3.0), 2.0, 0])
        kidneys.append(Kidney(middle, radii, rotation, hilum))
    return kidneys[0], kidneys[1]


def kidney_parts(kidney: Kidney, hu: dict[str, float]) -> list[Part]:
    """Cortex around medulla, sinus fat open to the hilum, renal pelvis."""
    inward = kidney.hilum - kidney.centre
    body = Ellipsoid.of(kidney.centre, kidney.radii_mm, kidney.rotation)
    sinus = Ellipsoid.of(kidney.centre + inward * 0.62, kidney.radii_mm * [0.5, 0.42, 0.45], kidney.rotation)
    pelvis = Ellipsoid.of(
        kidney.centre + inward * 0.75, kidney.radii_mm * [0.38, 0.22, 0.24], kidney.rotation
    )
    return [
        Part(body, hu["medulla"], hu["cortex"], 7.0, solid=True),
        Part(sinus, hu["fat"] + 15),
        Part(pelvis, hu["ureter"] if hu["ureter"] < 100 else 120.0),
    ]


def upper_organ_parts(
    rng: np.random.Generator, spine: Spine, habitus: Habitus, hu: dict[str, float]
) -> list[Part]:
    """Liver, spleen, stomach with gas, gallbladder and pancreas."""
    top, (wide, deep) = float(spine.centres[6][2]), habitus.cavity_half_mm
    front = float(habitus.centre[1])
    stomach_at, lean = (-wide * 0.42, front + deep * 0.30, top + 2), turn(roll_deg=-25)
    gas_at = (stomach_at[0], stomach_at[1] + 20, top + 6)
    gallbladder = Ellipsoid.of((wide * 0.36, front + deep * 0.48, top - 62), (13, 15, 30))
    spleen_turn = turn(yaw_deg=-35, roll_deg=-12)
    spleen = Ellipsoid.of((-wide * 0.72, front - deep * 0.38, top + 4), (26, 40, 52), spleen_turn)
    return [
        *(Part(shape, hu["liver"], solid=True) for shape in _liver(top, front, wide, deep)),
        Part(spleen, hu["spleen"], solid=True),
        Part(Ellipsoid.of(stomach_at, (44, 38, 62), lean), 25.0, hu["bowel_wall"], 4.0),
        Part(Ellipsoid.of(gas_at, (30, 13, 44), lean), -950.0),
        Part(gallbladder, 8.0, 35.0, 1.5),
        *flat(_pancreas(rng, float(spine.front(5)[1]) + 38, top), hu["gland"] - 8),
    ]


def _liver(top: float, front: float, wide: float, deep: float) -> list[Ellipsoid]:
    """Right lobe, left lobe, lower right segments."""
    lobes = (
        ((wide * 0.52, front + 8, top - 2), (wide * 0.46, deep * 0.76, 82.0), -12),
        ((wide * 0.12, front + deep * 0.42, top + 25), (wide * 0.52, deep * 0.36, 52.0), 8),
        ((wide * 0.70, front - 8, top - 48), (wide * 0.24, deep * 0.48, 62.0), -6),
    )
    return [Ellipsoid.of(centre, radii, turn(roll_deg=roll)) for centre, radii, roll in lobes]


def _pancreas(rng: np.random.Generator, y: float, top: float) -> list[Segment]:
    """From the head beside the duodenum to the tail at the spleen."""
    knots = [(34, y - 4, top - 62), (14, y + 3, top - 50), (-20, y + 2, top - 38), (-60, y - 18, top - 26)]
    path = smooth(knots)
    radii = np.interp(np.arange(len(path)), (0, 4, len(path) - 1), (13, 9, 7))
    return tube(path, (radii * rng.uniform(0.85, 1.1)).tolist())


def flat(segments: list[Segment], hu: float, *, solid: bool = False) -> list[Part]:
    """Plain parts of one attenuation."""
    return [Part(s, hu, solid=solid) for s in segments]
