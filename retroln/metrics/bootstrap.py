"""Confidence intervals by resampling patients, because one patient's nodes are not independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Percentile bootstrap interval of a mean."""

    low: float
    high: float


def interval(
    values_by_patient: Mapping[str, Sequence[float]],
    seed: int,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """Interval of the mean over all values, with the patient as the unit that is resampled.

    Sensitivity is such a mean (1.0 hit, 0.0 miss per node), so are mean Dice and false positives
    per volume. Percentile method (Efron and Tibshirani 1993, chapter 13). The order of patients
    does not change the result.

    Returns:
        None when fewer than two patients have a value: there is nothing to resample.
    """
    filled = [values_by_patient[name] for name in sorted(values_by_patient) if values_by_patient[name]]
    if len(filled) < 2:
        return None
    sums = np.array([float(np.sum(values)) for values in filled])
    sizes = np.array([len(values) for values in filled])
    draws = np.random.default_rng(seed).integers(len(filled), size=(resamples, len(filled)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
