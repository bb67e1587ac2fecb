"""Lymph nodes of a label map: instances, volume, axes, RECIST class, station and level."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy import stations
from retroln.errors import InputError
from retroln.imaging.geometry import Affine, require_same_grid
from retroln.imaging.volume import Volume
from retroln.metrics import strata
from retroln.metrics.components import as_labels, connected, occupied

# Two diameters (or slices) that differ by less than this share tie: only rounding separates them.
_TIE = 1e-9


@dataclass(frozen=True)
class NodeMeasurement:
    """One node; millimetres throughout, `centroid_world_mm` in RAS+.

    Attributes:
        long_axis_mm: greatest distance between voxel-face corners within any one axial slice.
        short_axis_mm: longest extent perpendicular to it in that slice.
        recist: "normal", "non_target" or "target" (RECIST 1.1, by the short axis).
        stratum: "<8", "8-10", "10-15" or ">=15".
        station: e.g. "paracaval"; None without an organ map or away from every station.
        level: vertebra at the centroid's height, e.g. "L3"; None without vertebrae or beyond them.
    """

    label: int
    volume_mm3: float
    short_axis_mm: float
    long_axis_mm: float
    centroid_world_mm: tuple[float, float, float]
    recist: strata.Recist
    stratum: strata.Stratum
    station: str | None = None
    level: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields."""
        return {**asdict(self), "centroid_world_mm": list(self.centroid_world_mm)}


def instances(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Number the nodes of a RAS+ mask or label map: its 26-connected components, from 1.

    Touching nodes that already have different values stay apart. See `metrics.components.connected`.
    """
    return connected(labels)


def findings(predicted: Volume, min_mm3: float) -> NDArray[np.int32]:
    """Number what a model found, without specks: components of at least `min_mm3`, from 1."""
    found = connected(predicted.array)
    voxel_mm3 = abs(float(np.linalg.det(predicted.grid.affine[:3, :3])))
    large = np.bincount(found.ravel()) * voxel_mm3 >= min_mm3
    large[0] = False
    return (np.cumsum(large) * large).astype(np.int32)[found]


def measure(
    labels: Volume,
    *,
    levels: stations.Levels | None = None,
    organs: Volume | None = None,
    instances: bool = False,
) -> tuple[NodeMeasurement, ...]:
    """Measure every node, in the order of its label; an empty map gives an empty tuple.

    Args:
        labels: mask or label map.
        levels: of the whole scan, for `level`; a cut label map would move the middles of what it cuts.
        organs: TotalSegmentator v2 `total` label map on the same grid, for `station`.
        instances: True if the values already number the nodes; else 26-connected components are made.

    Raises:
        InputError: reason `not_labels`, the map holds negative or fractional values, or `organs`
            is no map of organs.
        GeometryError: reason `grid_mismatch`, the organs lie on another grid.
    """
    if organs is not None:
        require_same_grid(labels.grid, organs.grid, what="organ map", reference_name="the label map")
        stations.require_organs(organs)
    found = _Found.of(_numbered(labels, instances))
    axes = found.axes_mm(labels.grid.affine)
    centroids = labels.grid.world_mm(found.centroids())
    volumes = found.counts * abs(float(np.linalg.det(labels.grid.affine[:3, :3])))
    measured = zip(found.labels, volumes, axes, centroids, strict=True)
    return tuple(_measurement(*node, levels, organs) for node in measured)


def to_csv(measured: Sequence[NodeMeasurement]) -> str:
    """One line per node under a header of the fields' names; the centroid is one cell, "x y z"."""
    text = StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(NodeMeasurement)], lineterminator="\n")
    writer.writeheader()
    for node in measured:
        centroid = " ".join(repr(mm) for mm in node.centroid_world_mm)
        writer.writerow({**node.to_dict(), "centroid_world_mm": centroid})
    return text.getvalue()


def _numbered(labels: Volume, instances: bool) -> NDArray[Any]:
    try:
        return as_labels(labels.array) if instances else connected(labels.array)
    except ValueError as error:
        raise InputError(
            "not a label map",
            reason="not_labels",
            expected="whole numbers, 0 outside the nodes",
            got=str(error),
            fix="pass the nodes' label map, not the CT or a probability map",
        ) from error


def _measurement(
    label: np.int64,
    volume_mm3: np.float64,
    axes_mm: tuple[float, float],
    centroid: NDArray[np.float64],
    levels: stations.Levels | None,
    organs: Volume | None,
) -> NodeMeasurement:
    long_mm, short_mm = axes_mm
    world_mm = (float(centroid[0]), float(centroid[1]), float(centroid[2]))
    return NodeMeasurement(
        label=int(label),
        volume_mm3=float(volume_mm3),
        short_axis_mm=short_mm,
        long_axis_mm=long_mm,
        centroid_world_mm=world_mm,
        recist=strata.recist(short_mm),
        stratum=strata.stratum(short_mm),
        station=stations.assign(world_mm, organs),
        level=levels.at(world_mm) if levels else None,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """All node voxels: sorted labels (m,), each voxel's place in them (n,), voxel index (n, 3)."""

    labels: NDArray[np.int64]
    node: NDArray[np.intp]
    index: NDArray[np.intp]

    @classmethod
    def of(cls, numbered: NDArray[Any]) -> _Found:
        box = occupied(numbered)
        if box is None:
            return cls(np.empty(0, np.int64), np.empty(0, np.intp), np.empty((0, 3), np.intp))
        part = numbered[box]
        index = np.argwhere(part)
        labels, node = np.unique(part[tuple(index.T)].astype(np.int64), return_inverse=True)
        return cls(labels, node, index + [side.start for side in box])

    @property
    def counts(self) -> NDArray[np.intp]:
        return np.bincount(self.node, minlength=self.labels.size)

    def centroids(self) -> NDArray[np.float64]:
        """Mean voxel index of each node, shape (m, 3)."""
        sums = [np.bincount(self.node, self.index[:, axis], self.labels.size) for axis in range(3)]
        return np.stack(sums, axis=1) / np.maximum(self.counts, 1)[:, None]

    def axes_mm(self, affine: Affine) -> list[tuple[float, float]]:
        """Long and short axis of each node."""
        # R of the QR decomposition measures in-plane index steps in mm, also for a sheared affine.
        plane = np.linalg.qr(affine[:3, :2])[1]
        longest = [(0.0, 0.0)] * self.labels.size
        for node, outline in self._outlines():
            longest[node] = _longer(longest[node], outline @ plane.T)
        return longest

    def _outlines(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Corner points (k, 2) in index units that span each node's convex hull, slice by slice."""
        if self.labels.size == 0:
            return
        i, j, k = self.index.T
        order = np.lexsort((j, i, k, self.node))
        node, i, j, k = self.node[order], i[order], j[order], k[order]
        row_start = _changes(node, k, i)
        row_end = np.append(row_start[1:], node.size) - 1
        rows = np.stack([i, j], axis=1)[row_start], j[row_end]
        slice_start = _changes(node[row_start], k[row_start])
        for first, last in zip(slice_start, np.append(slice_start[1:], row_start.size), strict=True):
            yield int(node[row_start[first]]), _corners(rows[0][first:last], rows[1][first:last])


def _changes(*columns: NDArray[np.intp]) -> NDArray[np.intp]:
    """Places where a sorted table starts a new combination of its columns."""
    differs = np.any([np.diff(column) != 0 for column in columns], axis=0)
    return np.concatenate([[0], np.flatnonzero(differs) + 1])


def _corners(row_first: NDArray[np.intp], last_j: NDArray[np.intp]) -> NDArray[np.float64]:
    """Lowest and highest voxel-face corner on every grid line i that the rows of one slice touch.

    Args:
        row_first: (rows, 2) index (i, j) of each row's first voxel.
        last_j: (rows,) j of its last voxel.
    """
    lines, place = np.unique(np.concatenate([row_first[:, 0], row_first[:, 0] + 1]), return_inverse=True)
    low, high = np.full(lines.size, np.inf), np.full(lines.size, -np.inf)
    np.minimum.at(low, place, np.tile(row_first[:, 1], 2))
    np.maximum.at(high, place, np.tile(last_j + 1, 2))
    return np.stack([np.tile(lines, 2), np.concatenate([low, high])], axis=1)


def _longer(best: tuple[float, float], points_mm: NDArray[np.float64]) -> tuple[float, float]:
    """The better of `best` and this slice's axes: the longer long axis, on a tie the longer short axis."""
    if np.linalg.norm(np.ptp(points_mm, axis=0)) < best[0] * (1 - _TIE):
        return best
    axes = _axes(points_mm)
    if axes[0] > best[0] * (1 + _TIE):
        return axes
    return best if axes[0] < best[0] * (1 - _TIE) else (best[0], max(best[1], axes[1]))


def _axes(points_mm: NDArray[np.float64]) -> tuple[float, float]:
    """Diameter of points (k, 2), and their greatest width across a diameter (across any that tie)."""
    steps = points_mm[:, None] - points_mm[None]
    lengths = np.hypot(steps[..., 0], steps[..., 1])
    long_mm = float(lengths.max())
    diameters = steps[np.triu(lengths >= long_mm * (1 - _TIE))] / long_mm
    across = points_mm @ np.stack([-diameters[:, 1], diameters[:, 0]])
    return long_mm, float(np.ptp(across, axis=0).max())
