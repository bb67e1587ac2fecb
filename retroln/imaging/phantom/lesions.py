"""Lymph nodes: sizes as measured in public data, placed at named stations without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, pi, sqrt

import numpy as np

from retroln.imaging.phantom.canvas import Part
from retroln.imaging.phantom.organs import Kidney
from retroln.imaging.phantom.shapes import Ellipsoid, Point, Shape, bounds_mm, moved
from retroln.imaging.phantom.spec import PhantomNode
from retroln.imaging.phantom.spine import LEVELS, Spine
from retroln.imaging.phantom.vessels import Course

# Quantiles of the 595 abdominal nodes (86 patients) of "NIH CT Lymph Nodes", TCIA, Roth et al.,
# doi:10.7937/K9/TCIA.2015.AQIIDCNM, CC BY 3.0: short axis, and long/short ratio.
_SHARE = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
_SHORT_MM = (6.06, 7.06, 8.40, 9.07, 10.31, 12.61, 16.61, 21.68, 26.15, 38.95, 45.0)
_RATIO = (1.023, 1.024, 1.025, 1.038, 1.103, 1.219, 1.355, 1.463, 1.464, 1.580, 1.581)
_RANK_CORRELATION = -0.11
_GAP_MM = 4.5
"""Between nodes: instances stay apart at 26-connectivity down to voxels of 2 x 2 x 3 mm."""

# Vessel, direction from its centre (degrees from the right towards anterior), level range.
_STATIONS: dict[str, tuple[str, float, tuple[float, float]]] = {
    "paracaval": ("inferior_vena_cava", 5.0, (1.9, 5.2)),
    "precaval": ("inferior_vena_cava", 85.0, (1.9, 4.2)),
    "retrocaval": ("inferior_vena_cava", -65.0, (2.2, 5.2)),
    "interaortocaval": ("aorta", 25.0, (2.2, 5.5)),
    "preaortic": ("aorta", 92.0, (2.2, 4.0)),
    "para_aortic_left": ("aorta", 180.0, (2.0, 5.6)),
    "retroaortic": ("aorta", -112.0, (2.4, 6.0)),
    "hilar": ("", 0.0, (4.0, 5.0)),
    "common_iliac": ("iliac", 0.0, (0.9, 1.7)),
}
_WEIGHTS = np.array([0.13, 0.08, 0.08, 0.18, 0.08, 0.24, 0.06, 0.07, 0.08])
STATIONS = tuple(_STATIONS)
_L5, _L2, _T12 = (LEVELS.index(level) for level in ("L5", "L2", "T12"))
_ASIDE_MM = 73.0


@dataclass(frozen=True, eq=False)
class Node:
    """An ellipsoid node in the world, its station and attenuation."""

    label: int
    station: str
    shape: Ellipsoid
    core_hu_shift: float
    hu_shift: float

    def row(self, plane: Point) -> PhantomNode:
        """Truth for axial planes spanned by the two orthonormal rows of `plane` (2, 3)."""
        form = self.shape.to_unit.T @ self.shape.to_unit
        diameters = 2 / np.sqrt(np.linalg.eigvalsh(plane @ form @ plane.T))
        volume = 4 / 3 * pi / abs(float(np.linalg.det(self.shape.to_unit)))
        x, y, z = (float(v) for v in self.shape.centre)
        return PhantomNode(
            self.label, self.station, float(diameters[1]), float(diameters[0]), volume, (x, y, z)
        )


def draw_sizes(rng: np.random.Generator, count: int) -> Point:
    """Short and long axis in mm, shape (count, 2), from the published distribution."""
    z = rng.standard_normal((count, 2))
    z[:, 1] = _RANK_CORRELATION * z[:, 0] + sqrt(1 - _RANK_CORRELATION**2) * z[:, 1]
    u = np.array([[0.5 * (1 + erf(value / sqrt(2))) for value in pair] for pair in z]).reshape(count, 2)
    short = np.exp(np.interp(u[:, 0], _SHARE, np.log(_SHORT_MM)))
    return np.stack([short, short * np.interp(u[:, 1], _SHARE, _RATIO)], 1)


def draw_shape(rng: np.random.Generator, short_mm: float, long_mm: float) -> Ellipsoid:
    """An ellipsoid about 0 whose central axial section has exactly these diameters.

    The axial ellipse is turned at random and sheared along z, which turns the ellipsoid in space.
    """
    angle = float(rng.uniform(0, pi))
    high = sqrt(short_mm * long_mm) / 2 * float(rng.uniform(0.9, 1.6))
    lean = rng.uniform(-0.45, 0.45, 2)
    cos, sin = np.cos(angle), np.sin(angle)
    section = np.array([[cos, sin], [-sin, cos]]) / np.array([[long_mm / 2], [short_mm / 2]])
    to_unit = np.zeros((3, 3))
    to_unit[:2, :2] = section
    to_unit[:2, 2] = -section @ lean
    to_unit[2, 2] = 1 / high
    return Ellipsoid(np.zeros(3), to_unit)


def make_nodes(
    rng: np.random.Generator,
    count: int | None,
    spine: Spine,
    courses: dict[str, Course],
    kidneys: tuple[Kidney, Kidney],
    obstacles: Sequence[Shape],
) -> tuple[Node, ...]:
    """`count` nodes (None: 2 to 9), largest placed first; each clear of `obstacles` and of the others.

    All lie whole between the lower end of L5's body and the upper end of T12's, and within 73 mm of L2's
    middle to either side.

    Raises:
        ValueError: there is no room for that many.
    """
    drawn = int(np.clip(1 + rng.poisson(4.2), 2, 9))
    sizes = draw_sizes(rng, drawn if count is None else count)
    placer = _Placer(rng, spine, courses, kidneys, obstacles)
    for short, long in sizes[np.argsort(-sizes[:, 0])]:
        placer.add(draw_shape(rng, float(short), float(long)))
    return tuple(placer.nodes)


class _Placer:
    """Rejection sampling of node positions at random stations."""

    def __init__(
        self,
        rng: np.random.Generator,
        spine: Spine,
        courses: dict[str, Course],
        kidneys: tuple[Kidney, Kidney],
        obstacles: Sequence[Shape],
    ) -> None:
        self.rng, self.spine, self.courses, self.kidneys = rng, spine, courses, kidneys
        self.obstacles = list(obstacles)
        self.low, self.high = bounds_mm(self.obstacles)
        self.bottom_mm = float(spine.centres[_L5][2] - spine.half_mm[_L5][2])
        self.top_mm = float(spine.centres[_T12][2] + spine.half_mm[_T12][2])
        self.middle_mm = float(spine.centres[_L2][0])
        self.nodes: list[Node] = []

    def add(self, shape: Ellipsoid) -> None:
        """Try stations at random, loosening the distance to the vessel.

        A node too large for every place tried (about 1 in 150) is shrunk by a fifth and tried again.
        """
        for _ in range(5):
            if self._placed(shape):
                return
            shape = Ellipsoid(shape.centre, shape.to_unit / 0.8)
        raise ValueError(f"no room for node {len(self.nodes) + 1}: ask for fewer nodes")

    def _placed(self, shape: Ellipsoid) -> bool:
        for attempt in range(400):
            station = str(self.rng.choice(STATIONS, p=_WEIGHTS / _WEIGHTS.sum()))
            centre = self._propose(station, shape, gap_mm=0.4 + attempt * 0.02)
            placed = Ellipsoid(centre, shape.to_unit)
            if self._free(placed):
                self._keep(placed, station)
                return True
        return False

    def _keep(self, shape: Ellipsoid, station: str) -> None:
        size = float(2 / np.linalg.svd(shape.to_unit)[1].mean())
        necrotic = size > 14 and self.rng.uniform() < 0.25
        fatty = not necrotic and self.rng.uniform() < 0.12
        core = -35.0 if necrotic else -60.0 if fatty else 0.0
        shift = float(np.clip(self.rng.normal(0, 9), -18, 18))
        self.nodes.append(Node(len(self.nodes) + 1, station, shape, core, shift))

    def _propose(self, station: str, shape: Ellipsoid, gap_mm: float) -> Point:
        vessel, angle, (low, high) = _STATIONS[station]
        height = float(self.spine.front(float(self.rng.uniform(low, high)))[2])
        if station == "hilar":
            kidney = self.kidneys[int(self.rng.integers(2))]
            side = float(np.sign(kidney.hilum[0]))
            ahead, up = self.rng.normal(0, 8, 2)
            return moved(kidney.hilum, -side * self.rng.uniform(4, 16), ahead, up)
        if vessel == "iliac":
            side = int(self.rng.integers(2))
            vessel = f"iliac_artery_{('left', 'right')[side]}"
            angle = (200.0, -20.0)[side]
        centre, radius = self.courses[vessel].at(height)
        theta = np.radians(angle + self.rng.normal(0, 14))
        direction = np.array([np.cos(theta), np.sin(theta), 0])
        support = float(np.sqrt(direction @ np.linalg.solve(shape.to_unit.T @ shape.to_unit, direction)))
        return np.asarray(centre + direction * (radius + support + gap_mm * self.rng.uniform(0.2, 2.0)))

    def _free(self, node: Ellipsoid) -> bool:
        surface = _sphere() @ np.linalg.inv(node.to_unit).T + node.centre
        x, y, z = surface.T.astype(np.float32)
        low, high = node.bounds_mm()
        aside_mm = max(high[0] - self.middle_mm, self.middle_mm - low[0])
        if low[2] < self.bottom_mm or high[2] > self.top_mm or aside_mm > _ASIDE_MM:
            return False
        near = np.flatnonzero(((self.low < high + 1) & (self.high > low - 1)).all(1))
        if any(float(self.obstacles[i].distance(x, y, z).min()) < 0.2 for i in near):
            return False
        return all(float(other.shape.distance(x, y, z).min()) >= _GAP_MM for other in self.nodes)


def _sphere(count: int = 160) -> Point:
    """Evenly spread unit vectors and the centre (Fibonacci lattice), shape (count + 1, 3)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.arange(count) * pi * (3 - sqrt(5))
    ring = np.sqrt(1 - z * z)
    return np.vstack([np.stack([ring * np.cos(angle), ring * np.sin(angle), z], 1), np.zeros(3)])


def node_parts(nodes: Sequence[Node], hu: dict[str, float]) -> list[Part]:
    """Nodes with their label; some with a necrotic core or a fatty hilum."""
    parts = []
    for node in nodes:
        rim = hu["node"] + node.hu_shift
        parts.append(Part(node.shape, rim, target="nodes", label=node.label))
        if node.core_hu_shift:
            core = Ellipsoid(
                node.shape.centre, node.shape.to_unit * (1.9 if node.core_hu_shift < -50 else 1.6)
            )
            parts.append(Part(core, rim + node.core_hu_shift))
    return parts
