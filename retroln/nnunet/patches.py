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

_NODES, _FALSE = 0.4, 0.4  # shares of the patches; the rest lies anywhere
_LEAST_WEIGHT = 0.3  # of a node that the network sees whole, beside 1.3 of one that it does not see
_MEMORY = 0.7  # of a node's weight when it is seen again
_SEEN = 0.6  # share of a node that a patch must show to say something of it
_FALSE_VOXELS = 30
_APART_VOXELS = 2  # what is nearer to a node is its rim
_MOST_PLACES, _ENOUGH_PLACES = 400, 20
_ASIDE = 0.25  # of the patch's side, about what it is centred on
_TURN_DEG = np.array([15.0, 8.0, 8.0])  # about the z, y and x axis
_STRETCH = 0.12  # of the logarithm


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
    spacing_mm: tuple[float, float, float]
    scales: Sequence[Sequence[float]] = ((1.0, 1.0, 1.0),)


@dataclass(frozen=True)
class _Place:
    """Where a patch lies in its crop: voxel `centre + turn @ offset`, `offset` from the patch's middle."""

    crop: int
    centre: Vector
    turn: Vector

    def to_crop(self, offsets: Vector) -> Vector:
        """Voxel coordinates, shape (n, 3), of offsets of the same shape."""
        at: Vector = self.centre + offsets @ self.turn.T
        return at


class Patches:
    """An endless stream of batches, `{"data", "target"}` as nnU-Net's trainer takes them.

    The same generator, crops and answers give the same patches.
    """

    def __init__(
        self,
        crops: Sequence[LabelledCrop],
        plan: PatchPlan,
        rng: np.random.Generator,
        *,
        vary: bool = True,
    ) -> None:
        """Draw from `crops`; `vary` mirrors, turns and stretches them, as patients differ and lie."""
        self._crops, self._plan, self._rng, self._vary = [*crops], plan, rng, vary
        self._patch = np.array(plan.patch)
        self._offsets = np.argwhere(np.ones(plan.patch, bool)) - (self._patch - 1) / 2
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
        at = place.to_crop(self._offsets[false[int(self._rng.integers(len(false)))]])
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
        return _Place(crop, self._inside(crop, centre + aside), self._turn())

    def _node_voxel(self) -> tuple[int, Vector]:
        weights = np.array([self._weights[key] for key in self._nodes])
        crop, node = self._nodes[int(self._rng.choice(len(self._nodes), p=weights / weights.sum()))]
        voxels = self._voxels[crop][node]
        return crop, voxels[int(self._rng.integers(len(voxels)))].astype(float)

    def _inside(self, crop: int, centre: Vector) -> Vector:
        """The nearest centre at which an upright patch lies in the crop, or the crop's middle."""
        last = np.array(self._crops[crop].image.shape) - 1
        half = np.minimum((self._patch - 1) / 2, last / 2)
        inside: Vector = np.clip(np.round(centre - half) + half, half, last - half)
        return inside

    def _turn(self) -> Vector:
        """From offsets in a patch to offsets in its crop: mirrored half of the time, turned and stretched."""
        if not self._vary:
            return np.eye(3)
        mirror = np.diag([1.0, 1.0, self._rng.choice([-1.0, 1.0])])
        a, b, c = np.radians(self._rng.uniform(-1, 1, 3) * _TURN_DEG)
        turn = _rotation(1, 2, a) @ _rotation(0, 2, b) @ _rotation(0, 1, c)
        stretch = np.diag(np.exp(self._rng.uniform(-1, 1, 3) * _STRETCH))
        to_mm = np.diag(self._plan.spacing_mm)
        matrix: Vector = np.linalg.inv(to_mm) @ turn @ stretch @ mirror @ to_mm
        return matrix

    def _cut(self, place: _Place) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Image (linear) and nodes (nearest) of a patch; what lies outside the crop is like its border."""
        crop, at = self._crops[place.crop], place.to_crop(self._offsets)
        image = _linear(crop.image, at).reshape(self._plan.patch)
        nearest = np.clip(np.rint(at).astype(np.intp), 0, np.array(crop.nodes.shape) - 1)
        return image, crop.nodes[tuple(nearest.T)].reshape(self._plan.patch)


def _linear(image: NDArray[np.float32], at: Vector) -> NDArray[np.float32]:
    import torch

    sides = np.array(image.shape)
    grid = (2 * at / np.maximum(sides - 1, 1) - 1)[:, ::-1].astype(np.float32)
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(image)[None, None],
        torch.from_numpy(grid)[None, None, None],
        padding_mode="border",
        align_corners=True,
    )
    values: NDArray[np.float32] = sampled.numpy()
    return values


def _rotation(first: int, second: int, angle: float) -> Vector:
    """A turn in the plane of two axes."""
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def _node_voxels(nodes: NDArray[np.uint16]) -> dict[int, NDArray[np.int64]]:
    """The voxels of each node, by its number."""
    return {number: np.argwhere(nodes == number) for number in range(1, int(nodes.max(initial=0)) + 1)}
