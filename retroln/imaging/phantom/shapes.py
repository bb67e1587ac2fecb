"""Shapes by signed distance (mm, negative inside), each with a world bounding box.

`distance(x, y, z)` takes world coordinates that broadcast together, so a grid's axes can be passed
unexpanded. Distances are exact for segments and first-order close to the surface for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Point = NDArray[np.float64]


def unit(values: Array) -> Array:
    """Values kept within 0..1; on arrays as small as most shapes `np.clip` takes three times as long."""
    return np.asarray(np.minimum(np.maximum(values, 0), 1))


class Shape(Protocol):
    """Something that can be painted."""

    def bounds_mm(self) -> tuple[Point, Point]:
        """Lowest and highest world corner of a box around the shape."""

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Signed distance in mm, negative inside."""


def bounds_mm(shapes: Sequence[Shape]) -> tuple[Array, Array]:
    """Lowest and highest corners of `shapes`, each (n, 3)."""
    bounds = np.array([shape.bounds_mm() for shape in shapes]).reshape(-1, 2, 3)
    return bounds[:, 0], bounds[:, 1]


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """All p with |to_unit @ (p - centre)| <= 1; `to_unit` is any regular 3x3 matrix."""

    centre: Point
    to_unit: Point

    @classmethod
    def of(
        cls, centre: Sequence[float] | Point, radii_mm: Sequence[float] | Point, turn: Point | None = None
    ) -> Ellipsoid:
        """Semi-axes `radii_mm` along the columns of the rotation `turn` (default: world axes)."""
        rotation = np.eye(3) if turn is None else turn
        return cls(np.asarray(centre, float), np.diag(1 / np.asarray(radii_mm, float)) @ rotation.T)

    def bounds_mm(self) -> tuple[Point, Point]:
        """The tight box."""
        half = np.linalg.norm(np.linalg.inv(self.to_unit), axis=1)
        return self.centre - half, self.centre + half

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """First-order distance f(f-1)/|grad| with f the norm in unit space (I. Quilez, ellipsoid)."""
        dx, dy, dz = (v - np.float32(c) for v, c in zip((x, y, z), self.centre, strict=True))
        form = (self.to_unit.T @ self.to_unit).astype(np.float32)
        gx, gy, gz = (row[0] * dx + (row[1] * dy + row[2] * dz) for row in form)
        f = np.sqrt(np.maximum(gx * dx + gy * dy + gz * dz, 1e-12))
        slope = np.sqrt(gx * gx + gy * gy + gz * gz) + np.float32(1e-9)
        return np.asarray(f * (f - 1) / slope)


@dataclass(frozen=True, eq=False)
class Segment:
    """A round-ended cylinder from `start` to `stop` whose radius runs linearly."""

    start: Point
    stop: Point
    start_radius_mm: float
    stop_radius_mm: float

    def bounds_mm(self) -> tuple[Point, Point]:
        """The box around both end spheres."""
        radius = max(self.start_radius_mm, self.stop_radius_mm)
        return np.minimum(self.start, self.stop) - radius, np.maximum(self.start, self.stop) + radius

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Distance to the axis less the radius there."""
        way = (self.stop - self.start).astype(np.float32)
        dx, dy, dz = (v - np.float32(c) for v, c in zip((x, y, z), self.start, strict=True))
        share = (way[0] * dx + (way[1] * dy + way[2] * dz)) / np.float32(max(float(way @ way), 1e-6))
        share = unit(share)
        rx, ry, rz = dx - share * way[0], dy - share * way[1], dz - share * way[2]
        radius = self.start_radius_mm + share * np.float32(self.stop_radius_mm - self.start_radius_mm)
        return np.asarray(np.sqrt(rx * rx + ry * ry + rz * rz) - radius)


@dataclass(frozen=True, eq=False)
class Barrel:
    """A vertebral body or disc: an elliptic cylinder with a waist and a flat back.

    `frame` holds the unit vectors right, anterior, up as columns; `half_mm` the half sizes along
    them; `waist` the share by which the section narrows at mid height.
    """

    centre: Point
    frame: Point
    half_mm: tuple[float, float, float]
    waist: float = 0.0

    def bounds_mm(self) -> tuple[Point, Point]:
        """The box around the turned box."""
        half = np.abs(self.frame) @ np.asarray(self.half_mm)
        return self.centre - half, self.centre + half

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """The greatest of the distances to side, end plates and back."""
        dx, dy, dz = (v - np.float32(c) for v, c in zip((x, y, z), self.centre, strict=True))
        axes = self.frame.T.astype(np.float32)
        right, ahead, up = (a[0] * dx + (a[1] * dy + a[2] * dz) for a in axes)
        wide, deep, high = (np.float32(h) for h in self.half_mm)
        narrow = 1 - np.float32(self.waist) * np.maximum(1 - np.square(up / high), 0)
        r = np.sqrt(np.square(right / wide) + np.square(ahead / deep)) / narrow
        side = (r - 1) * np.float32(min(wide, deep))
        return np.asarray(np.maximum(np.maximum(side, np.abs(up) - high), -ahead - np.float32(0.8) * deep))


@dataclass(frozen=True, eq=False)
class Trunk:
    """An upright superelliptic cylinder without ends: skin, muscle wall, abdominal cavity."""

    centre: Point
    half_mm: tuple[float, float]
    reach: tuple[Point, Point] = field(
        default_factory=lambda: (np.full(3, -1e4), np.full(3, 1e4)), repr=False
    )

    def bounds_mm(self) -> tuple[Point, Point]:
        """Everywhere."""
        return self.reach

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """Distance to the section |x|^2.4 + |y|^2.4 = 1, scaled by the mean half size."""
        wide, deep = self.half_mm
        along = np.abs((x - np.float32(self.centre[0])) / np.float32(wide)) ** np.float32(2.4)
        across = np.abs((y - np.float32(self.centre[1])) / np.float32(deep)) ** np.float32(2.4)
        r = (along + across) ** np.float32(1 / 2.4)
        return np.asarray((r - 1) * np.float32((wide + deep) / 2))


def tube(points: Iterable[Sequence[float] | Point], radius_mm: float | Sequence[float]) -> list[Segment]:
    """Segments along a polyline; one radius for all points or one for each."""
    path = np.array([np.asarray(p, float) for p in points])
    radii = np.broadcast_to(np.asarray(radius_mm, float), len(path))
    return [Segment(path[i], path[i + 1], float(radii[i]), float(radii[i + 1])) for i in range(len(path) - 1)]


def smooth(points: Iterable[Sequence[float] | Point], per_span: int = 4) -> Point:
    """Catmull-Rom curve through `points` (n, k) with `per_span` steps between neighbours."""
    knots = np.array([np.asarray(p, float) for p in points])
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = np.linspace(0, 1, per_span, endpoint=False)[:, None]
    spans = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True)
    ]
    return np.vstack([*spans, knots[-1:]])


def moved(point: Point, right: float, anterior: float, superior: float) -> Point:
    """The point shifted in world mm."""
    return np.asarray(point + np.array([right, anterior, superior]))


def turn(pitch_deg: float = 0, roll_deg: float = 0, yaw_deg: float = 0) -> Point:
    """Rotation about right (pitch), then anterior (roll), then superior (yaw)."""
    a, b, c = np.radians([pitch_deg, roll_deg, yaw_deg])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    rotation: Point = about_z @ about_y @ about_x
    return rotation
