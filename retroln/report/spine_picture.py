"""The labelled vertebrae on the CT, sagittal and coronal, for a person who must judge them.

Both pictures follow the spine: each row is cut where the vertebrae lie at that height, so a bent spine stays
in sight. Filled is what the label map says in that cut; outlined is each level's whole shadow, so that a
stray piece or a level beside the spine is seen too. Display convention as in `planes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from retroln.anatomy.levels import LEVEL_IDS, Level, Vertebra
from retroln.anatomy.vertebrae import Vertebrae
from retroln.imaging.volume import Volume
from retroln.report.planes import EDGES, Colour, Window, encoded, lettered, outline, resized

SpinePlane = Literal["sagittal", "coronal"]

BONE = Window(level=250, width=1300)
_IDS = LEVEL_IDS["totalseg-v2"]
# Neighbours differ; from Okabe and Ito's palette.
_COLOURS: tuple[Colour, ...] = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167))
_FILL = 0.4
_MARGIN_MM = 45.0
_INTO_BODY_MM = 15.0
_GAP_PX, _TITLE_PX, _NAMES_PX = 8, 22, 44


@dataclass(frozen=True)
class _Cut:
    """One plane: the grey picture, the labels in the cut, each level's shadow; rows run downwards."""

    plane: SpinePlane
    grey: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    shadows: Mapping[Level, NDArray[np.bool_]]
    pixel_mm: tuple[float, float]


def spine_picture(ct: Volume, vertebrae: Vertebrae, *, title: str = "", pixel_mm: float = 0.6) -> bytes:
    """PNG with the sagittal and the coronal cut side by side at one scale, levels named, edges lettered.

    Without any level the cuts go through the middle of the scan.

    Args:
        ct: the scan in HU, RAS+.
        vertebrae: on the same grid, fragments included.
        title: a line above the pictures.
        pixel_mm: side of a pixel.

    Raises:
        ValueError: CT and vertebrae differ in shape.
    """
    if ct.array.shape != vertebrae.grid.shape:
        raise ValueError(f"CT must be {vertebrae.grid.shape}, got {ct.array.shape}")
    labels = vertebrae.to_label_map()
    pictures = [
        lettered(_drawn(_cut(ct, vertebrae, labels, plane), pixel_mm), EDGES[plane])
        for plane in ("sagittal", "coronal")
    ]
    return encoded(_sheet(pictures, title), "PNG")


def _cut(ct: Volume, vertebrae: Vertebrae, labels: NDArray[np.uint8], plane: SpinePlane) -> _Cut:
    """The slab of slices around the levels, cut along the spine."""
    axis, across = (0, 1) if plane == "sagittal" else (1, 0)
    rows, columns = _window(vertebrae, 2), _window(vertebrae, across)
    place = _course(vertebrae, axis)[rows]
    height = np.arange(rows.start, rows.stop)

    def along_spine(array: NDArray[Any]) -> NDArray[Any]:
        cut = array[place, :, height] if axis == 0 else array[:, place, height].T
        return np.asarray(cut[::-1, columns][:, ::-1])

    spacing_mm = ct.grid.spacing_mm
    return _Cut(
        plane,
        BONE.grey(along_spine(ct.array)),
        along_spine(labels),
        {level: _shadow(vertebra, axis, rows, columns) for level, vertebra in vertebrae.levels.items()},
        (spacing_mm[across], spacing_mm[2]),
    )


def _window(vertebrae: Vertebrae, axis: int) -> slice:
    """The part of an axis that the levels take, with a margin; all of it without any level."""
    side, margin = vertebrae.grid.shape[axis], _MARGIN_MM / vertebrae.grid.spacing_mm[axis]
    boxes = [vertebra.box for vertebra in vertebrae.levels.values()]
    low = min((box.start[axis] for box in boxes), default=0) - margin
    high = max((box.stop[axis] for box in boxes), default=side) + margin
    return slice(max(0, int(low)), min(side, int(np.ceil(high))))


def _course(vertebrae: Vertebrae, axis: int) -> NDArray[np.intp]:
    """Where to cut `axis` in each slice: through the levels' middles, at the bodies front to back."""
    if not vertebrae.levels:
        return np.full(vertebrae.grid.shape[2], vertebrae.grid.shape[axis] // 2, np.intp)
    knots = sorted(_knot(vertebra, vertebrae, axis) for vertebra in vertebrae.levels.values())
    heights, places = np.array(knots).T
    course = np.interp(np.arange(vertebrae.grid.shape[2]), heights, places)
    return np.asarray(np.clip(np.rint(course), 0, vertebrae.grid.shape[axis] - 1), np.intp)


def _knot(vertebra: Vertebra, vertebrae: Vertebrae, axis: int) -> tuple[float, float]:
    """Height and place on `axis` of one level's middle, or of its body's."""
    middle = vertebra.centroid_index()
    if axis == 0:
        return float(middle[2]), float(middle[0])
    front = vertebra.box.stop[1] - 1 - _INTO_BODY_MM / vertebrae.grid.spacing_mm[1]
    return float(middle[2]), max(float(front), float(vertebra.box.start[1]))


def _shadow(vertebra: Vertebra, axis: int, rows: slice, columns: slice) -> NDArray[np.bool_]:
    """A level seen through the whole scan, in the picture's rows and columns."""
    across = 1 - axis
    seen = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    top, left = vertebra.box.start[2] - rows.start, vertebra.box.start[across] - columns.start
    shape = vertebra.box.shape
    seen[top : top + shape[2], left : left + shape[across]] = vertebra.mask.any(axis=axis).T
    return np.asarray(seen[::-1, ::-1])


def _drawn(cut: _Cut, pixel_mm: float) -> Image.Image:
    rows, columns = cut.grey.shape
    size = (
        max(1, round(columns * cut.pixel_mm[0] / pixel_mm)),
        max(1, round(rows * cut.pixel_mm[1] / pixel_mm)),
    )
    grey = Image.fromarray(cut.grey).resize(size, Image.Resampling.BICUBIC)
    pixels = np.array(grey.convert("RGB"), np.float32)
    filled = resized(cut.labels, size)
    for number, (level, shadow) in enumerate(cut.shadows.items()):
        colour = np.array(_COLOURS[number % len(_COLOURS)], np.float32)
        inside = filled == _IDS[level]
        pixels[inside] = (1 - _FILL) * pixels[inside] + _FILL * colour
        pixels[outline(resized(shadow, size))] = colour
    image = Image.new("RGB", (size[0] + _NAMES_PX, size[1]), (0, 0, 0))
    image.paste(Image.fromarray(np.rint(pixels).astype(np.uint8)), (_NAMES_PX, 0))
    for number, (level, shadow) in enumerate(cut.shadows.items()):
        _name(image, level, resized(shadow, size), _COLOURS[number % len(_COLOURS)])
    return image


def _name(image: Image.Image, level: Level, shadow: NDArray[np.bool_], colour: Colour) -> None:
    """The level's name left of the picture, at the height of its middle, with a line to its shadow."""
    rows, columns = np.nonzero(shadow)
    if not rows.size:
        return
    row, edge = float(rows.mean()), float(columns.min()) + _NAMES_PX
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)
    draw.line((_NAMES_PX - 8, row, edge, row), fill=colour, width=1)
    draw.text((_NAMES_PX - 10, row), level.value, fill=colour, font=font, anchor="rm")


def _sheet(pictures: list[Image.Image], title: str) -> Image.Image:
    width = sum(picture.width for picture in pictures) + _GAP_PX * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures) + _TITLE_PX), (0, 0, 0))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, _TITLE_PX))
        left += picture.width + _GAP_PX
    text = title.encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(sheet).text((6, 3), text, fill=(255, 255, 255), font=ImageFont.load_default(size=13))
    return sheet
