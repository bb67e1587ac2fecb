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

Shape = tuple[int, int, int]

_NODES, _FALSE = 0.5, 0.25  # shares of the patches; the rest lies anywhere
_LEAST_WEIGHT = 0.3  # of a node that the network sees whole, beside 1.3 of one that it does not see
_MEMORY = 0.7  # of a node's weight when it is seen again
_SEEN = 0.6  # share of a node that a patch must show to say something of it
_FALSE_VOXELS = 30
_APART_VOXELS = 2  # what is nearer to a node is its rim
_MOST_PLACES, _ENOUGH_PLACES = 400, 20
_JITTER = 0.25  # of the patch's side, about what it is centred on


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
class _Place:
    """A patch: its crop, its first voxel, and whether left and right are exchanged."""

    crop: int
    start: NDArray[np.int64]
    mirrored: bool


class Patches:
    """An endless stream of batches, `{"data", "target"}` as nnU-Net's trainer takes them.

    The same generator, crops and answers give the same patches.
    """

    def __init__(
        self,
        crops: Sequence[LabelledCrop],
        patch: Shape,
        batch_size: int,
        scales: Sequence[Sequence[float]],
        rng: np.random.Generator,
    ) -> None:
        """Draw from `crops`; targets are given at each of `scales` (1 is the patch's own resolution)."""
        self._crops = [_padded(crop, patch) for crop in crops]
        self._patch, self._batch_size, self._scales, self._rng = np.array(patch), batch_size, scales, rng
        self._voxels = [_node_voxels(crop.nodes) for crop in self._crops]
        self._nodes = [(crop, node) for crop, found in enumerate(self._voxels) for node in found]
        self._weights = dict.fromkeys(self._nodes, 1.0 + _LEAST_WEIGHT)
        self._false_places: deque[tuple[int, NDArray[np.int64]]] = deque(maxlen=_MOST_PLACES)
        self._batch: list[_Place] = []

    def __iter__(self) -> Patches:
        return self

    def __next__(self) -> dict[str, Any]:
        """A batch: `data` float32 (b, 1, z, y, x), `target` one int16 tensor of 0 and 1 per scale."""
        import torch

        self._batch = [self._draw() for _ in range(self._batch_size)]
        images = np.stack([self._cut(place, self._crops[place.crop].image) for place in self._batch])
        nodes = np.stack([self._cut(place, self._crops[place.crop].nodes) for place in self._batch])
        mask = torch.from_numpy((nodes > 0).astype(np.int16))[:, None]
        steps = [tuple(slice(None, None, round(1 / share)) for share in scale) for scale in self._scales]
        return {
            "data": torch.from_numpy(images)[:, None],
            "target": [mask[(slice(None), slice(None), *step)].contiguous() for step in steps],
        }

    def learn(self, probability: NDArray[np.float32]) -> None:
        """Note what the network said of the last batch: P(node), shape (b, z, y, x)."""
        for place, seen in zip(self._batch, probability, strict=True):
            unmirrored = seen[:, :, ::-1] if place.mirrored else seen
            nodes = self._crops[place.crop].nodes[self._box(place)]
            self._weigh(place.crop, nodes, unmirrored)
            self._note_false(place, nodes, unmirrored)

    def _weigh(self, crop: int, nodes: NDArray[np.uint16], probability: NDArray[np.float32]) -> None:
        voxels = np.bincount(nodes.ravel())
        sums = np.bincount(nodes.ravel(), probability.ravel())
        for node in (np.flatnonzero(voxels[1:]) + 1).tolist():
            if voxels[node] >= _SEEN * len(self._voxels[crop][node]):
                missed = 1.0 - float(sums[node] / voxels[node])
                known = self._weights[crop, node]
                self._weights[crop, node] = _MEMORY * known + (1 - _MEMORY) * (_LEAST_WEIGHT + missed)

    def _note_false(self, place: _Place, nodes: NDArray[np.uint16], probability: NDArray[np.float32]) -> None:
        """Remember one place of a false finding, unless it is the rim of a node."""
        false = np.argwhere((probability > 0.5) & (nodes == 0))
        if len(false) < _FALSE_VOXELS:
            return
        at = place.start + false[int(self._rng.integers(len(false)))]
        around = tuple(slice(max(n - _APART_VOXELS, 0), n + _APART_VOXELS + 1) for n in at)
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
            return self._place(crop, self._rng.integers(0, self._room(crop) + 1))
        aside = np.round(self._rng.uniform(-_JITTER, _JITTER, 3) * self._patch).astype(np.int64)
        return self._place(crop, centre - self._patch // 2 + aside)

    def _node_voxel(self) -> tuple[int, NDArray[np.int64]]:
        weights = np.array([self._weights[key] for key in self._nodes])
        crop, node = self._nodes[int(self._rng.choice(len(self._nodes), p=weights / weights.sum()))]
        voxels = self._voxels[crop][node]
        return crop, voxels[int(self._rng.integers(len(voxels)))]

    def _place(self, crop: int, start: NDArray[np.int64]) -> _Place:
        return _Place(crop, np.clip(start, 0, self._room(crop)), bool(self._rng.uniform() < 0.5))

    def _room(self, crop: int) -> NDArray[np.int64]:
        room: NDArray[np.int64] = np.array(self._crops[crop].image.shape) - self._patch
        return room

    def _box(self, place: _Place) -> tuple[slice, ...]:
        return tuple(slice(int(n), int(n + side)) for n, side in zip(place.start, self._patch, strict=True))

    def _cut(self, place: _Place, array: NDArray[Any]) -> NDArray[Any]:
        part = array[self._box(place)]
        return part[:, :, ::-1] if place.mirrored else part


def _node_voxels(nodes: NDArray[np.uint16]) -> dict[int, NDArray[np.int64]]:
    """The voxels of each node, by its number."""
    return {number: np.argwhere(nodes == number) for number in range(1, int(nodes.max(initial=0)) + 1)}


def _padded(crop: LabelledCrop, patch: Shape) -> LabelledCrop:
    """A crop smaller than a patch is filled up with zeros on both sides, as nnU-Net does."""
    missing = [max(side - n, 0) for n, side in zip(crop.image.shape, patch, strict=True)]
    if not any(missing):
        return crop
    width = [(n // 2, n - n // 2) for n in missing]
    return LabelledCrop(np.pad(crop.image, width), np.pad(crop.nodes, width))
