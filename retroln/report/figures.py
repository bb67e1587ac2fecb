"""Figures of a training and its evaluation as PNG bytes, drawn without a display or global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_LOSS, _VALIDATION, _DICE = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito, colour-blind safe


def training_curve(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """Losses and pseudo-Dice by epoch.

    Args:
        epochs: keys `epoch`, `train_loss`, `val_loss`, `pseudo_dice` (one number or one per class);
            a missing or None value leaves a gap.

    Raises:
        ValueError: no epochs.
    """
    if not epochs:
        raise ValueError("a training curve needs at least one epoch")
    figure, axes = _figure("Epoch", "Loss (Dice + cross-entropy)")
    steps = [int(e["epoch"]) for e in epochs]
    marker = "o" if len(epochs) < 3 else ""
    axes.plot(steps, _column(epochs, "train_loss"), color=_LOSS, marker=marker, label="training loss")
    axes.plot(steps, _column(epochs, "val_loss"), color=_VALIDATION, marker=marker, label="validation loss")
    right = axes.twinx()
    right.plot(
        steps,
        _column(epochs, "pseudo_dice"),
        color=_DICE,
        linestyle="--",
        marker=marker,
        label="pseudo-Dice (patches)",
    )
    right.set_ylim(0, 1)
    right.set_ylabel("Pseudo-Dice")
    right.spines["top"].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return _png(figure)


def froc(fp_per_volume: Sequence[float], sensitivity: Sequence[float], *, hit_rule: str) -> bytes:
    """Free-response curve at its operating points.

    Args:
        fp_per_volume: false positives per volume, ascending and above 0 (drawn on a log2 axis).
        sensitivity: share of nodes found (0..1) at each point.
        hit_rule: what counts as a hit, e.g. "3D IoU >= 0.1"; shown in the picture.
    """
    figure, axes = _figure("False positives per volume", "Sensitivity")
    axes.plot(list(fp_per_volume), list(sensitivity), color=_LOSS, marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(fp_per_volume), [f"{x:g}" for x in fp_per_volume])
    axes.set_ylim(0, 1.02)
    axes.set_title(f"FROC, hit: {hit_rule}", fontsize=10)
    return _png(figure)


def sensitivity_by_stratum(strata: Mapping[str, tuple[int, int]]) -> bytes:
    """Share of nodes found by short-axis stratum, with counts.

    Args:
        strata: stratum in mm (`<8`, `8-10`, ...) to (nodes found, nodes); a stratum without nodes
            is shown as empty, not as zero.
    """
    figure, axes = _figure("Short axis (mm)", "Sensitivity")
    for place, (found, nodes) in enumerate(strata.values()):
        share = found / nodes if nodes else 0.0
        axes.bar(place, share, color=_LOSS, width=0.6)
        text = f"{found}/{nodes}" if nodes else "no nodes"
        axes.annotate(text, (place, share), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(strata)), list(strata))
    axes.set_ylim(0, 1.12)
    return _png(figure)


def _figure(x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines["top"].set_visible(False)
    return figure, axes


def _column(epochs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """One value per epoch; a list (one per class) is averaged, a missing value becomes NaN (a gap)."""
    values = []
    for epoch in epochs:
        value = epoch.get(name)
        if isinstance(value, list | tuple):
            value = sum(value) / len(value) if value else None
        values.append(float("nan") if value is None else float(value))
    return values


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
