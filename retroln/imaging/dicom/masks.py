"""Node masks as DICOM: a SEG or an RTSTRUCT onto the grid of the series that it was drawn on.

Segments and ROIs become labels 1, 2, ... in the order of their numbers; where two overlap the lower stays.
With several of them, those count whose name fits the pattern. Names are free text and may hold a patient's,
so no message repeats one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging.dicom import segmentation, structures
from retroln.imaging.dicom.headers import is_dicom, own_words, read_dataset, texts
from retroln.imaging.dicom.study import Series
from retroln.imaging.volume import Volume

_MOST_LABELS = 255


def referenced_series(path: Path) -> frozenset[str]:
    """SeriesInstanceUIDs that a DICOM mask refers to; empty where it names none, or is no DICOM.

    Raises:
        InputError: `not_a_mask`, `truncated`.
    """
    if not is_dicom(path):
        return frozenset()
    with own_words(path):
        header = _read(path)
        return frozenset(_reader(header, path).referenced_series(header))


def read_mask(path: Path, series: Series, names: str) -> Volume:
    """The mask as labels on the series' grid, 0 outside.

    Args:
        names: regular expression for the segments or ROIs that count when there are several.

    Raises:
        InputError: `not_a_mask`, `mask_reference`, `mask_segments`, `mask_contours`, and as reading pixels.
        GeometryError: `grid_mismatch`.
    """
    grid = series.require_usable().grid
    with own_words(path):
        header = _read(path)
        reader = _reader(header, path)
        _require_same_series(
            reader.frames_of_reference(header), reader.referenced_series(header), series, path
        )
        chosen = _chosen(reader.named(header), names, path)
        labels: NDArray[Any] = np.zeros(grid.shape, np.uint8, order="F")
        reader.draw(
            header, path, {number: label for label, number in enumerate(chosen, start=1)}, grid, labels
        )
    return Volume.from_source(labels, grid)


def _read(path: Path) -> Any:
    return read_dataset(path, ("SOPClassUID", *segmentation.NEEDED, *structures.NEEDED), pixels=False)


def _reader(header: Any, path: Path) -> Any:
    """The module that knows this kind of object."""
    kind = (texts(header, "SOPClassUID") or ("",))[0]
    for module in (segmentation, structures):
        if kind in module.SOP_CLASSES:
            return module
    raise InputError(
        "the mask is a DICOM object of another kind",
        reason="not_a_mask",
        file=path,
        expected="a Segmentation (SEG) or an RT Structure Set",
        got="neither",
        fix="export the segmentation itself, not its pictures or its report",
    )


def _require_same_series(
    frames_of_reference: Collection[str], series_uids: Collection[str], series: Series, path: Path
) -> None:
    """The mask must be drawn in the series' frame of reference and, where it names a series, on this one."""
    own = {instance.frame_of_reference for instance in series.instances} - {""}
    if own.isdisjoint(frames_of_reference):
        raise _wrong_reference(path, "the FrameOfReferenceUID of the CT series", "another one, or none")
    if series_uids and series.uid not in series_uids:
        raise _wrong_reference(path, "the SeriesInstanceUID of the CT series", "that of another series")


def _wrong_reference(path: Path, expected: str, got: str) -> InputError:
    return InputError(
        "the mask was drawn on another series",
        reason="mask_reference",
        file=path,
        expected=expected,
        got=got,
        fix="deliver the series that it was drawn on, or name it in the column series of cases.csv",
    )


def _chosen(named: Sequence[tuple[int, str]], names: str, path: Path) -> list[int]:
    """Numbers of the segments or ROIs that are nodes: the only one, or those with a fitting name."""
    fitting = [number for number, name in named if len(named) == 1 or re.search(names, name)]
    if not fitting or len(fitting) > _MOST_LABELS:
        raise InputError(
            "no segment or ROI of the mask can be told to be the nodes",
            reason="mask_segments",
            file=path,
            expected=f"one, or up to {_MOST_LABELS} with names that fit {names}",
            got=f"{len(named)}, of which {len(fitting)} fit",
            fix="rename them, or set RETROLN_MASK_NAMES; the next ingest goes by it",
        )
    return sorted(fitting)
