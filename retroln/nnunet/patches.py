"""Patches for a short training: every node alike at first, then mostly what the network gets wrong.

Stock nnU-Net centres patches on a random voxel of a node, so a node of 30 mm is drawn 27 times as often as
one of 10 mm, and draws the others at random from what the network has long told apart. With a thousand
iterations there is no time for that. Here nodes are drawn by how badly they were seen last, and places of
false findings are drawn again (hard example mining; Shrivastava et al., CVPR 2016, mine regions likewise).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.metrics.components import connected

Vector = NDArray[np.float64]
Indices = NDArray[np.intp]

_NODES, _FALSE = 0.4, 0.4  # shares of the patches; the rest lies anywhere
_LEAST_WEIGHT = 0.3  # of a node that the network sees whole, beside 1.3 of one that it does not see
_MEMORY = 0.7  # of a node's weight when it is seen again
_SEEN = 0.6  # share of a node that a patch must show to say something of it
_FALSE_VOXELS = 30
_APART_VOXELS = 2  # what is nearer to a node is its rim
_MOST_PLACES, _ENOUGH_PLACES = 400, 20
_ASIDE = 0.25  # of the patch's side, about what it is centred on


@dataclass(frozen=True, eq=False)
class LabelledCrop:
    """A preprocessed crop: `image` float32, `nodes` instances from 1, 0 outside; both z, y, x."""

    image: NDArray[np.float32]
    nodes: NDArray[np.uint16]

    @classmethod
    def of(cls, image: NDArray[Any], mask: NDArray[Any]) -> LabelledCrop:
        """From an image and the mask of its nodes (0 or below is background)."""
        return cls(np.asarray(image, np.float32), connected((mask > 0).astype(np.uint8)).astype(np.uint16))


@dataclass(frozen=True)
class PatchPlan:
    """What patches are like, along z, y, x; targets are given at each of `scales` (1 is the patch's own)."""

    patch: tuple[int, int, int]
    batch_size: int
    scales: Sequence[Sequence[float]] = ((1.0, 1.0, 1.0),)


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a patch lies in its crop: the voxels along each axis."""

    crop: int
    axes: tuple[Indices, Indices, Indices]

    def voxel(self, index: Sequence[int]) -> Vector:
        """The crop's voxel at an index of the patch."""
        return np.array([axis[n] for axis, n in zip(self.axes, index, strict=True)], float)


class Patches:
    """An endless stream of batches, `{"data", "target"}` as nnU-Net's trainer takes them.

    The same generator, crops and answers give the same patches.
    """

    def __init__(self, crops: Sequence[LabelledCrop], plan: PatchPlan, rng: np.random.Generator) -> None:
        """Draw from `crops`, as they are.

        What is drawn a few times need not be mirrored or turned to look new, and a turned voxel is a mean of
        its neighbours: less noisy than any that the network will be shown.
        """
        self._crops, self._plan, self._rng = [*crops], plan, rng
        self._patch = np.array(plan.patch)
        self._voxels = [_node_voxels(crop.nodes) for crop in self._crops]
        self._nodes = [(crop, node) for crop, found in enumerate(self._voxels) for node in found]
        self._weights = dict.fromkeys(self._nodes, 1.0 + _LEAST_WEIGHT)
        self._false_places: deque[tuple[int, Vector]] = deque(maxlen=_MOST_PLACES)
        self._batch: list[tuple[_Place, NDArray[np.uint16]]] = []

    def __iter__(self) -> Patches:
        return self

    def __next__(self) -> dict[str, Any]:
        """A batch: `data` float32 (b, 1, z, y, x), `target` one int16 tensor of 0 and 1 per scale."""
        import torch

        places = [self._draw() for _ in range(self._plan.batch_size)]
        cuts = [self._cut(place) for place in places]
        self._batch = [(place, nodes) for place, (_, nodes) in zip(places, cuts, strict=True)]
        data = torch.from_numpy(np.stack([image for image, _ in cuts]))[:, None]
        mask = torch.from_numpy(np.stack([nodes > 0 for _, nodes in cuts]).astype(np.int16))[:, None]
        steps = [tuple(slice(None, None, round(1 / share)) for share in scale) for scale in self._plan.scales]
        return {"data": data, "target": [mask[(..., *step)].contiguous() for step in steps]}

    def learn(self, probability: NDArray[np.float32]) -> None:
        """Note what the network said of the last batch: P(node), shape (b, z, y, x)."""
        for (place, nodes), said in zip(self._batch, probability, strict=True):
            self._weigh(place.crop, nodes, said)
            self._note_false(place, nodes, said)

    def _weigh(self, crop: int, nodes: NDArray[np.uint16], said: NDArray[np.float32]) -> None:
        voxels, sums = np.bincount(nodes.ravel()), np.bincount(nodes.ravel(), said.ravel())
        for node in (np.flatnonzero(voxels[1:]) + 1).tolist():
            if voxels[node] >= _SEEN * len(self._voxels[crop][node]):
                missed = 1.0 - float(sums[node] / voxels[node])
                before = self._weights[crop, node]
                self._weights[crop, node] = _MEMORY * before + (1 - _MEMORY) * (_LEAST_WEIGHT + missed)

    def _note_false(self, place: _Place, nodes: NDArray[np.uint16], said: NDArray[np.float32]) -> None:
        """Remember one place of a false finding, unless it is the rim of a node."""
        false = np.flatnonzero((said > 0.5) & (nodes == 0))
        if len(false) < _FALSE_VOXELS:
            return
        at = place.voxel(np.unravel_index(false[int(self._rng.integers(len(false)))], nodes.shape))
        around = tuple(slice(max(round(n) - _APART_VOXELS, 0), round(n) + _APART_VOXELS + 1) for n in at)
        if not self._crops[place.crop].nodes[around].any():
            self._false_places.append((place.crop, at))

    def _draw(self) -> _Place:
        share = self._rng.uniform()
        if share < _NODES and self._nodes:
            crop, centre = self._node_voxel()
        elif share < _NODES + _FALSE and len(self._false_places) >= _ENOUGH_PLACES:
            crop, centre = self._false_places[int(self._rng.integers(len(self._false_places)))]
        else:
            crop = int(self._rng.integers(len(self._crops)))
            centre = self._rng.uniform(0, np.array(self._crops[crop].image.shape))
        aside = self._rng.uniform(-_ASIDE, _ASIDE, 3) * self._patch
        return _Place(crop, self._axes(crop, centre + aside))

    def _node_voxel(self) -> tuple[int, Vector]:
        weights = np.array([self._weights[key] for key in self._nodes])
        crop, node = self._nodes[int(self._rng.choice(len(self._nodes), p=weights / weights.sum()))]
        voxels = self._voxels[crop][node]
        return crop, voxels[int(self._rng.integers(len(voxels)))].astype(float)

    def _axes(self, crop: int, centre: Vector) -> tuple[Indices, Indices, Indices]:
        """The nearest patch that lies in the crop; a crop that is smaller goes on as its border."""
        sides = np.array(self._crops[crop].image.shape)
        spare = sides - self._patch
        inside = np.clip(np.rint(centre - (self._patch - 1) / 2), 0, np.maximum(spare, 0))
        first = np.where(spare < 0, spare // 2, inside).astype(int)
        z, y, x = (
            np.clip(np.arange(start, start + length), 0, side - 1)
            for start, length, side in zip(first, self._patch, sides, strict=True)
        )
        return z, y, x

    def _cut(self, place: _Place) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Image and nodes of a patch."""
        crop, at = self._crops[place.crop], np.ix_(*place.axes)
        return crop.image[at], crop.nodes[at]


def _node_voxels(nodes: NDArray[np.uint16]) -> dict[int, NDArray[np.int64]]:
    """The voxels of each node, by its number."""
    return {number: np.argwhere(nodes == number) for number in range(1, int(nodes.max(initial=0)) + 1)}
