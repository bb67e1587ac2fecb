"""Scores of one case, and their summary over a test set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.metrics.bootstrap import LEVEL, Interval, interval
from retroln.metrics.components import connected
from retroln.metrics.detection import MIN_IOU, match
from retroln.metrics.overlap import dice
from retroln.metrics.strata import ENLARGED_MM, STRATA, at_least, stratum
from retroln.metrics.surface import TOLERANCE_MM, Spacing, nsd

SEED = 600


@dataclass(frozen=True)
class NodeScore:
    """One true node: its size, and whether it was found (IoU >= 0.1 one to one; any overlap)."""

    label: int
    short_axis_mm: float
    hit: bool
    hit_any_overlap: bool


@dataclass(frozen=True)
class CaseScore:
    """One case. `dice` and `nsd` are None when the case is node-free.

    Attributes:
        false_positives: predictions without a true node (one to one, IoU >= 0.1).
        fp_any_overlap: predictions that touch no true node at all.
        fp_volume_mm3: volume of the `false_positives`.
        nsd: normalised surface distance at 2 mm.
    """

    case_id: str
    patient_id: str
    dice: float | None
    nsd: float | None
    nodes: tuple[NodeScore, ...]
    false_positives: int
    fp_any_overlap: int
    fp_volume_mm3: float

    @property
    def n_nodes(self) -> int:
        """True nodes."""
        return len(self.nodes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "n_nodes": self.n_nodes, "nodes": [asdict(node) for node in self.nodes]}


def score_case(
    case_id: str,
    patient_id: str,
    truth: NDArray[Any],
    prediction: NDArray[Any],
    spacing_mm: Spacing,
    short_axes_mm: Mapping[int, float],
) -> CaseScore:
    """Score a prediction against the truth on one grid.

    Args:
        case_id: the case.
        patient_id: whom it belongs to; the unit of the bootstrap.
        truth: integer instance map, labels as in `short_axes_mm`, 0 outside.
        prediction: mask or instance map of the same shape; split into 26-connected instances here.
        spacing_mm: voxel size along each array axis.
        short_axes_mm: short axis of each true instance.

    Raises:
        ValueError: shapes differ, or `short_axes_mm` does not name exactly the truth's labels.
    """
    found = connected(prediction)
    result = match(truth, found)
    labels = sorted((*result.hits, *result.misses))
    if labels != sorted(short_axes_mm):
        raise ValueError(f"short_axes_mm must name the labels {labels}, got {sorted(short_axes_mm)}")
    hits, touched = set(result.hits), set(result.any_overlap_hits)
    false_voxels = int(np.isin(found, result.false_positives).sum()) if result.false_positives else 0
    return CaseScore(
        case_id=case_id,
        patient_id=patient_id,
        dice=dice(truth, found),
        nsd=nsd(truth, found, spacing_mm),
        nodes=tuple(NodeScore(i, float(short_axes_mm[i]), i in hits, i in touched) for i in labels),
        false_positives=len(result.false_positives),
        fp_any_overlap=len(result.any_overlap_false_positives),
        fp_volume_mm3=false_voxels * float(np.prod(spacing_mm)),
    )


@dataclass(frozen=True)
class StratumSummary:
    """Detection within one stratum of the short axis; sensitivity None without a node."""

    nodes: int
    hits: int
    sensitivity: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Summary:
    """A test set's figures. A mean is None where nothing defines it; intervals are by patient.

    Attributes:
        dice_mean: over cases with a node; `nsd_mean` likewise (tolerance `nsd_tolerance_mm`).
        sensitivity_ge10mm: true nodes with short axis >= 10 mm found at IoU >= `min_iou`.
        fp_per_volume: false positives per case, node-free cases included.
        fp_per_node_free_volume: false positives per node-free case.
        fp_volume_mm3_per_volume: their mean volume per case.
        strata: by stratum of the short axis.
        intervals: at level `interval_level`, by the figure's name; None with under two patients.
    """

    cases: int
    patients: int
    node_free_cases: int
    nodes: int
    dice_mean: float | None
    nsd_mean: float | None
    sensitivity: float | None
    sensitivity_any_overlap: float | None
    sensitivity_ge10mm: float | None
    fp_per_volume: float
    fp_any_overlap_per_volume: float
    fp_per_node_free_volume: float | None
    fp_volume_mm3_per_volume: float
    strata: dict[str, StratumSummary]
    intervals: dict[str, Interval | None]
    min_iou: float = MIN_IOU
    nsd_tolerance_mm: float = TOLERANCE_MM
    interval_level: float = LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an interval becomes {"low", "high"}."""
        return asdict(self)


_ByPatient = dict[str, list[float]]


def summarise(scores: Sequence[CaseScore], seed: int = SEED) -> Summary:
    """Summarise a test set; `ValueError` when it is empty or a case comes twice."""
    if not scores:
        raise ValueError("a summary needs at least one case, got none")
    if len({score.case_id for score in scores}) != len(scores):
        raise ValueError("a case was scored twice")
    values = _values(scores)
    node_free = [score for score in scores if score.n_nodes == 0]
    figures = {name: _mean(by_patient) for name, by_patient in values.items()}
    intervals = {name: interval(by_patient, seed) for name, by_patient in values.items()}
    return Summary(
        cases=len(scores),
        patients=len({score.patient_id for score in scores}),
        node_free_cases=len(node_free),
        nodes=sum(score.n_nodes for score in scores),
        strata={name: _stratum(scores, name, seed) for name in STRATA},
        intervals=intervals,
        **figures,  # type: ignore[arg-type]
    )


def _values(scores: Sequence[CaseScore]) -> dict[str, _ByPatient]:
    """The single values, by patient, whose mean is each figure of the summary."""
    node_free = [score for score in scores if score.n_nodes == 0]
    return {
        "dice_mean": _per_case(scores, lambda score: score.dice),
        "nsd_mean": _per_case(scores, lambda score: score.nsd),
        "sensitivity": _hits(scores, lambda node: node.hit),
        "sensitivity_any_overlap": _hits(scores, lambda node: node.hit_any_overlap),
        "sensitivity_ge10mm": _hits(
            scores, lambda node: node.hit, lambda node: at_least(node.short_axis_mm, ENLARGED_MM)
        ),
        "fp_per_volume": _per_case(scores, lambda score: float(score.false_positives)),
        "fp_any_overlap_per_volume": _per_case(scores, lambda score: float(score.fp_any_overlap)),
        "fp_per_node_free_volume": _per_case(node_free, lambda score: float(score.false_positives)),
        "fp_volume_mm3_per_volume": _per_case(scores, lambda score: score.fp_volume_mm3),
    }


def _stratum(scores: Sequence[CaseScore], name: str, seed: int) -> StratumSummary:
    values = _hits(scores, lambda node: node.hit, lambda node: stratum(node.short_axis_mm) == name)
    flags = [flag for patient in values.values() for flag in patient]
    return StratumSummary(len(flags), int(sum(flags)), _mean(values), interval(values, seed))


def _per_case(scores: Iterable[CaseScore], figure: Callable[[CaseScore], float | None]) -> _ByPatient:
    values: _ByPatient = defaultdict(list)
    for score in scores:
        value = figure(score)
        if value is not None:
            values[score.patient_id].append(value)
    return values


def _hits(
    scores: Iterable[CaseScore],
    found: Callable[[NodeScore], bool],
    counted: Callable[[NodeScore], bool] = lambda node: True,
) -> _ByPatient:
    values: _ByPatient = defaultdict(list)
    for score in scores:
        values[score.patient_id] += [float(found(node)) for node in score.nodes if counted(node)]
    return values


def _mean(values: _ByPatient) -> float | None:
    flat = [value for patient in values.values() for value in patient]
    return float(np.mean(flat)) if flat else None
