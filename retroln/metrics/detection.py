"""Which nodes were found: one-to-one matching of instances, and the FROC curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.metrics.overlap import require_same_shape

MIN_IOU = 0.1
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Match:
    """A truth instance and the prediction it was matched with."""

    truth: int
    prediction: int
    iou: float


@dataclass(frozen=True)
class DetectionResult:
    """Instance labels by outcome; every truth is a hit or a miss, every prediction a match or false.

    Attributes:
        matches: one-to-one pairs with 3D IoU at or above the limit (the headline).
        misses: truth instances without a pair.
        false_positives: predictions without a pair, a second fragment on one node included.
        any_overlap_hits: truth instances that share at least one voxel with a prediction.
        any_overlap_false_positives: predictions that share no voxel with any truth.
    """

    matches: tuple[Match, ...]
    misses: tuple[int, ...]
    false_positives: tuple[int, ...]
    any_overlap_hits: tuple[int, ...]
    any_overlap_false_positives: tuple[int, ...]

    @property
    def hits(self) -> tuple[int, ...]:
        """Truth instances that were matched."""
        return tuple(match.truth for match in self.matches)


@dataclass(frozen=True, eq=False)
class OverlapTable:
    """IoU (truths x predictions) of every pair of instances, with the labels of rows and columns."""

    truths: NDArray[np.int64]
    predictions: NDArray[np.int64]
    iou: NDArray[np.float64]


def overlap_table(truth: NDArray[Any], prediction: NDArray[Any]) -> OverlapTable:
    """3D IoU of all pairs of instances; inputs are integer instance maps of one shape, 0 outside."""
    require_same_shape(truth, prediction)
    rows, row_sizes = _sizes(truth)
    columns, column_sizes = _sizes(prediction)
    shared = np.zeros((rows.size, columns.size))
    both = (truth != 0) & (prediction != 0)
    if both.any():
        row = np.searchsorted(rows, truth[both].astype(np.int64))
        column = np.searchsorted(columns, prediction[both].astype(np.int64))
        np.add.at(shared, (row, column), 1)
    union = row_sizes[:, None] + column_sizes[None, :] - shared
    return OverlapTable(rows, columns, shared / union)


def match(truth: NDArray[Any], prediction: NDArray[Any], min_iou: float = MIN_IOU) -> DetectionResult:
    """Match instances one to one: the most pairs with IoU >= `min_iou`, then the largest summed IoU.

    Args:
        truth: integer instance map, 0 outside.
        prediction: integer instance map of the same shape (a bare mask counts as one instance).
        min_iou: inclusive.
    """
    return match_table(overlap_table(truth, prediction), min_iou)


def match_table(table: OverlapTable, min_iou: float = MIN_IOU) -> DetectionResult:
    """As `match`, on a table made before."""
    pairs = _assign(table.iou, min_iou)
    matches = tuple(
        Match(int(table.truths[i]), int(table.predictions[j]), float(table.iou[i, j])) for i, j in pairs
    )
    touched = table.iou > 0
    return DetectionResult(
        matches,
        _without(table.truths, {i for i, _ in pairs}),
        _without(table.predictions, {j for _, j in pairs}),
        tuple(int(label) for label in table.truths[touched.any(axis=1)]),
        tuple(int(label) for label in table.predictions[~touched.any(axis=0)]),
    )


@dataclass(frozen=True, eq=False)
class FrocCase:
    """One volume: the table of its instances and a confidence per prediction (table order)."""

    table: OverlapTable
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, truth: NDArray[Any], prediction: NDArray[Any], scores: Mapping[int, float]) -> FrocCase:
        """From instance maps and the confidence of each predicted label; `KeyError` if one lacks."""
        table = overlap_table(truth, prediction)
        return cls(table, np.array([scores[int(label)] for label in table.predictions], float))


@dataclass(frozen=True)
class FrocPoint:
    """All predictions with confidence >= `threshold` kept."""

    threshold: float
    fp_per_volume: float
    sensitivity: float


@dataclass(frozen=True)
class Froc:
    """The curve from strict to lenient, and the sensitivity within each rate of `FROC_RATES`."""

    points: tuple[FrocPoint, ...]
    sensitivity_at: dict[float, float]


def froc(
    cases: Sequence[FrocCase], rates: Sequence[float] = FROC_RATES, min_iou: float = MIN_IOU
) -> Froc | None:
    """Free-response curve over volumes, matched anew (one to one) at every threshold.

    `sensitivity_at[rate]` is the best sensitivity at or below that many false positives per volume,
    a step without interpolation (0.0 when even the strictest threshold has more). None when no
    case holds a node: sensitivity is undefined then.
    """
    nodes = sum(case.table.truths.size for case in cases)
    if nodes == 0:
        return None
    points = _froc_points(cases, nodes, min_iou)
    at = {
        float(rate): max((p.sensitivity for p in points if p.fp_per_volume <= rate + 1e-12), default=0.0)
        for rate in rates
    }
    return Froc(points, at)


def _froc_points(cases: Sequence[FrocCase], nodes: int, min_iou: float) -> tuple[FrocPoint, ...]:
    """A point per distinct confidence; only cases that gain a prediction are matched again."""
    scores = [case.scores for case in cases if case.scores.size]
    hits, kept = np.zeros(len(cases), int), np.zeros(len(cases), int)
    points = []
    for threshold in np.unique(np.concatenate(scores))[::-1] if scores else ():
        for number, case in enumerate(cases):
            keep = case.scores >= threshold
            if keep.sum() != kept[number]:
                kept[number] = keep.sum()
                hits[number] = len(_assign(case.table.iou[:, keep], min_iou))
        false_positives = float(kept.sum() - hits.sum())
        points.append(FrocPoint(float(threshold), false_positives / len(cases), float(hits.sum()) / nodes))
    return tuple(points)


def _assign(iou: NDArray[np.float64], min_iou: float) -> list[tuple[int, int]]:
    """Row and column of each pair. One pair more always outweighs any gain in summed IoU."""
    from scipy.optimize import linear_sum_assignment

    eligible = (iou >= min_iou) & (iou > 0)
    value = np.where(eligible, min(iou.shape) + 1 + iou, 0.0)
    rows, columns = linear_sum_assignment(value, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if eligible[i, j]]


def _sizes(instances: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    labels, sizes = np.unique(instances[instances != 0].astype(np.int64), return_counts=True)
    return labels, sizes


def _without(labels: NDArray[np.int64], taken: set[int]) -> tuple[int, ...]:
    return tuple(int(label) for place, label in enumerate(labels) if place not in taken)
