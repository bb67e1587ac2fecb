"""From a seed to an anatomy, from an anatomy and a grid to volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.imaging.geometry import AxisMap, Grid
from retroln.imaging.phantom import attenuation, lesions, mimics, organs, spine, vessels
from retroln.imaging.phantom.canvas import Canvas, Part, ras_grid
from retroln.imaging.phantom.shapes import Point
from retroln.imaging.phantom.spec import USUAL_NAMES, Phantom, PhantomSpec
from retroln.imaging.volume import Volume


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One patient in the world: parts in paint order, nodes, and the middle of the scan."""

    parts: list[Part]
    nodes: tuple[lesions.Node, ...]
    centre_world_mm: Point


def make_phantom(spec: PhantomSpec) -> Phantom:
    """The phantom of `spec`; deterministic.

    Raises:
        ValueError: `node_count` nodes do not fit.
    """
    anatomy = make_anatomy(spec)
    grid = ras_grid(spec, anatomy.centre_world_mm)
    canvas = Canvas(grid)
    canvas.paint(anatomy.parts)
    labels = canvas.maps["vertebrae"]
    if spec.level_names != USUAL_NAMES:
        labels[...] = spine.renamed(labels, spec.level_names)
    for level in spec.missing_levels:
        labels[labels == spine.LEVEL_IDS[level]] = 0
    source = _source_grid(grid, spec.orientation)
    ct = canvas.finish(_rng(spec.seed, 9), spec.noise_hu)

    def volume(array: NDArray[Any]) -> Volume:
        return Volume(array, grid, source)

    present = set(np.unique(canvas.maps["nodes"]).tolist())
    plane = (grid.affine[:3, :2] / np.linalg.norm(grid.affine[:3, :2], axis=0)).T
    rows = tuple(node.row(plane) for node in anatomy.nodes if node.label in present)
    maps = {name: volume(array) for name, array in canvas.maps.items()}
    return Phantom(spec, volume(ct), node_table=rows, **maps)


def make_anatomy(spec: PhantomSpec) -> Anatomy:
    """Everything that the seed (and phase, node, fusion and variant settings) decides; no grid involved."""
    seed = spec.seed
    hu = attenuation.draw(_rng(seed, 0), spec.phase)
    bones = spine.make_spine(_rng(seed, 1), fused_l2=spec.fused_l2, variant=spec.variant)
    habitus = organs.make_habitus(_rng(seed, 2), bones)
    courses = vessels.make_courses(_rng(seed, 3), bones)
    kidneys = organs.make_kidneys(_rng(seed, 4), bones)
    hila = (kidneys[0].hilum, kidneys[1].hilum)
    parts = [
        *organs.trunk_parts(habitus, bones, hu),
        *organs.psoas_parts(_rng(seed, 5), bones, hu),
        *organs.upper_organ_parts(_rng(seed, 6), bones, habitus, hu),
        *mimics.bowel_parts(_rng(seed, 7), bones, habitus, hu),
        *(part for kidney in kidneys for part in organs.kidney_parts(kidney, hu)),
        *mimics.mimic_parts(_rng(seed, 8), bones, kidneys, courses, hu),
        *spine.rib_parts(bones, habitus.wall_half_mm, habitus.centre, spec.rib_labels),
        *spine.spine_parts(bones),
        *vessels.branch_parts(_rng(seed, 10), courses, hila, hu),
        *vessels.great_vessel_parts(courses, hu),
    ]
    solid = [part.shape for part in parts if part.solid]
    count = 0 if spec.node_free else spec.node_count
    nodes = lesions.make_nodes(_rng(seed, 11), count, bones, courses, kidneys, solid)
    centre = np.array([0.0, habitus.skin_centre[1] - 5.0, float(bones.centres[-1][2]) + 35.0 - 165.0])
    return Anatomy([*parts, *lesions.node_parts(nodes, hu)], nodes, centre)


def _rng(seed: int, stream: int) -> np.random.Generator:
    """One stream per subject, so that a change in one leaves the others as they were."""
    return np.random.default_rng([seed, stream])


def _source_grid(grid: Grid, orientation: str) -> Grid:
    """The delivered grid of a RAS+ grid: the inverse of canonicalising."""
    order = tuple(
        next(i for i, letter in enumerate(orientation) if letter in pair) for pair in ("RL", "AP", "SI")
    )
    flip = tuple(orientation[axis] in "LPI" for axis in order)
    to_ras = AxisMap(order, flip)  # type: ignore[arg-type]
    shape = to_ras.from_ras(np.empty(grid.shape, np.bool_)).shape
    change = to_ras.grid_to_ras(Grid(shape, np.eye(4))).affine
    return Grid(shape, grid.affine @ np.linalg.inv(change))
