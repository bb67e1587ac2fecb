"""What a short training sees: nodes alike, then what it misses, then what it takes for one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from retroln.nnunet.patches import LabelledCrop, Patches, PatchPlan

SHAPE, PATCH = (20, 24, 28), (8, 8, 8)
BIG, SMALL = 1, 2
SCALES = ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5))
FALSE = (slice(13, 17), slice(3, 7), slice(21, 25))


def crop() -> LabelledCrop:
    """A node of 216 voxels, one of 8, and an image in which every voxel differs."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:8, 2:8, 2:8] = 1
    mask[14:16, 16:18, 6:8] = 1
    return LabelledCrop.of(np.arange(mask.size, dtype=np.float32).reshape(SHAPE), mask)


def patches(*crops: LabelledCrop, seed: int = 0) -> Patches:
    plan = PatchPlan(PATCH, 4, SCALES)
    return Patches(crops or (crop(),), plan, np.random.default_rng(seed))


def boxes(batch: dict[str, Any]) -> list[tuple[slice, ...]]:
    """Where upright patches lie in the crop, read from the image."""
    starts = [np.unravel_index(round(float(image.min())), SHAPE) for image in batch["data"].numpy()]
    return [tuple(slice(int(n), int(n) + side) for n, side in zip(s, PATCH, strict=True)) for s in starts]


def shown(stream: Patches, answer: NDArray[Any] | None, batches: int) -> Counter[str]:
    """How many patches show what, while the network says `answer` of the crop."""
    nodes, counted = crop().nodes, Counter[str]()
    for _ in range(batches):
        lie = boxes(next(stream))
        for box in lie:
            counted["small"] += int((nodes[box] == SMALL).sum() == 8)
            counted["false"] += int(
                all(b.start <= f.start and f.stop <= b.stop for b, f in zip(box, FALSE, strict=True))
            )
        if answer is not None:
            stream.learn(np.stack([answer[box] for box in lie]).astype(np.float32))
    return counted


def test_a_batch_is_the_image_and_its_nodes_at_every_scale() -> None:
    batch = next(patches())
    assert batch["data"].shape == (4, 1, *PATCH)
    fine, coarse = batch["target"]
    assert fine.shape == (4, 1, 8, 8, 8) and coarse.shape == (4, 1, 4, 4, 4)
    for image, target, box in zip(batch["data"].numpy(), fine.numpy(), boxes(batch), strict=True):
        np.testing.assert_array_equal(image[0], crop().image[box])
        np.testing.assert_array_equal(target[0], crop().nodes[box] > 0)
    np.testing.assert_array_equal(coarse.numpy(), fine.numpy()[:, :, ::2, ::2, ::2])


def test_small_nodes_are_drawn_as_often_as_large_ones() -> None:
    stream = patches()
    drawn = Counter(stream._node_voxel()[1].tolist()[0] < 10 for _ in range(1000))
    assert 450 < drawn[True] < 550  # the large node's 216 voxels beside the small one's 8


def test_what_is_missed_is_shown_more_often_than_what_is_found() -> None:
    found_big = (crop().nodes == BIG).astype(np.float32)
    after_misses, after_nothing = patches(), patches()
    shown(after_misses, found_big, 60)
    shown(after_nothing, None, 60)
    assert shown(after_misses, found_big, 200)["small"] > 1.2 * shown(after_nothing, None, 200)["small"]
    assert after_misses._weights[0, SMALL] > 1.2 and after_misses._weights[0, BIG] < 0.4


def test_false_findings_are_shown_again() -> None:
    answer = (crop().nodes > 0).astype(np.float32)
    answer[FALSE] = 1.0
    mined, plain = patches(), patches()
    shown(mined, answer, 100)
    assert shown(mined, answer, 200)["false"] > 1.5 * shown(plain, None, 200)["false"]
    for number, voxel in mined._false_places:
        assert number == 0
        assert all(side.start <= n < side.stop for n, side in zip(voxel, FALSE, strict=True))


def test_the_rim_of_a_node_is_no_false_finding() -> None:
    answer = np.zeros(SHAPE, np.float32)
    answer[1:9, 1:9, 1:9] = 1.0  # a voxel more than the node on every side
    stream = patches()
    shown(stream, answer, 100)
    assert not stream._false_places


def test_a_crop_smaller_than_a_patch_goes_on_as_its_border() -> None:
    tiny = LabelledCrop.of(np.ones((4, 30, 5), np.float32), np.ones((4, 30, 5), np.uint8))
    batch = next(patches(tiny))
    assert batch["data"].shape == (4, 1, *PATCH)
    assert (batch["data"] == 1).all() and (batch["target"][0] == 1).all()


def test_crops_without_any_node_are_drawn_from_all_the_same() -> None:
    empty = LabelledCrop.of(crop().image, np.zeros(SHAPE, np.uint8))
    assert not any(target.any() for target in next(patches(empty))["target"])


def test_the_same_seed_gives_the_same_patches_and_another_others() -> None:
    first, again, other = (next(patches(seed=seed))["data"].numpy() for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
