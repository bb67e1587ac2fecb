"""Axial, coronal and sagittal pictures of a crop with outlined nodes, in radiological display.

Display convention (as in clinical viewers): patient's right on the left of axial and coronal images,
anterior up in axial and on the left in sagittal images, superior up. Pixels are square in mm.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from retroln.imaging.volume import Volume

Plane = Literal["axial", "coronal", "sagittal"]
Colour = tuple[int, int, int]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
# Letters at the left, right, top and bottom edge of each picture.
EDGES: Mapping[Plane, tuple[str, str, str, str]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
# Per plane: RAS axis that is cut, axis along the columns, axis along the rows (all shown from high to low).
AXES: Mapping[Plane, tuple[int, int, int]] = {
    "axial": (2, 0, 1),
    "coronal": (1, 0, 2),
    "sagittal": (0, 1, 2),
}
# Okabe and Ito's palette: told apart with every common colour vision deficiency.
CLASS_COLOURS: Mapping[str, Colour] = {
    "target": (255, 110, 64),
    "non_target": (240, 205, 40),
    "normal": (86, 200, 245),
}
_OTHER_COLOUR: Colour = (255, 255, 255)
_LETTER: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Window:
    """Display window in HU: `level` is the middle grey, `width` the span from black to white."""

    level: float
    width: float

    def grey(self, hu: NDArray[Any]) -> NDArray[np.uint8]:
        """HU of any shape as 0..255; what lies outside the window is clipped."""
        low = self.level - self.width / 2
        scaled = (np.asarray(hu, np.float32) - low) * (255 / self.width)
        return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


SOFT_TISSUE = Window(level=40, width=400)


def displayed(array: NDArray[Any], plane: Plane, index: int) -> NDArray[Any]:
    """One slice of a RAS+ array as rows and columns of the picture (a view).

    Args:
        array: 3D, axes (right, anterior, superior).
        index: position along the axis that the plane cuts.
    """
    cut, _, _ = AXES[plane]
    return np.asarray(np.moveaxis(array, cut, 0)[index].T[::-1, ::-1])


def picture(
    ct: Volume,
    labels: Volume,
    plane: Plane,
    index: int,
    *,
    colours: Mapping[int, Colour],
    pixel_mm: float = 0.5,
    window: Window = SOFT_TISSUE,
    thickness_px: int = 1,
) -> Image.Image:
    """RGB picture of one slice with outlined labels, no letters.

    Args:
        ct: crop in HU, RAS+.
        labels: instance labels on the same grid; 0 is background.
        colours: outline colour per label; a label without one is white.
        pixel_mm: side of a pixel.

    Raises:
        ValueError: the two arrays differ in shape.
    """
    if ct.array.shape != labels.array.shape:
        raise ValueError(f"labels must be {ct.array.shape}, got {labels.array.shape}")
    size = _size_px(ct, plane, pixel_mm)
    grey = Image.fromarray(window.grey(displayed(ct.array, plane, index)))
    image = np.array(grey.resize(size, Image.Resampling.BICUBIC).convert("RGB"))
    ids = resized(displayed(labels.array, plane, index), size)
    border = outline(ids, thickness_px)
    for label in np.unique(ids[border]):
        image[border & (ids == label)] = colours.get(int(label), _OTHER_COLOUR)
    return Image.fromarray(image)


def outline(ids: NDArray[Any], thickness_px: int = 1) -> NDArray[np.bool_]:
    """Pixels of each label within `thickness_px` rows or columns of something else, shape as `ids`."""
    padded = np.pad(ids, thickness_px)
    rows, columns = ids.shape
    inner = np.ones(ids.shape, np.bool_)
    for shift in range(2 * thickness_px + 1):
        inner &= padded[shift : shift + rows, thickness_px : thickness_px + columns] == ids
        inner &= padded[thickness_px : thickness_px + rows, shift : shift + columns] == ids
    return np.asarray((ids != 0) & ~inner)


def three_planes(
    ct: Volume,
    labels: Volume,
    at: tuple[int, int, int],
    *,
    colours: Mapping[int, Colour],
    pixel_mm: float = 0.6,
    window: Window = SOFT_TISSUE,
) -> bytes:
    """PNG with the three planes through voxel `at` side by side at one scale, edges lettered."""
    pictures = []
    for plane in PLANES:
        one = picture(
            ct, labels, plane, at[AXES[plane][0]], colours=colours, pixel_mm=pixel_mm, window=window
        )
        pictures.append(lettered(one, EDGES[plane]))
    gap = 6
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures)), (0, 0, 0))
    left = 0
    for one in pictures:
        sheet.paste(one, (left, (sheet.height - one.height) // 2))
        left += one.width + gap
    return encoded(sheet, "PNG")


def thumbnail(
    ct: Volume,
    labels: Volume,
    at: tuple[int, int, int],
    *,
    colours: Mapping[int, Colour],
    side_mm: float = 50,
    pixel_mm: float = 0.3,
) -> bytes:
    """JPEG of the axial surroundings of voxel `at`, `side_mm` square, black outside the crop."""
    image = picture(ct, labels, "axial", at[2], colours=colours, pixel_mm=pixel_mm, thickness_px=3)
    x, y = position_px(ct, "axial", at, pixel_mm)
    half = side_mm / 2 / pixel_mm
    box = (round(x - half), round(y - half), round(x + half), round(y + half))
    return encoded(image.crop(box), "JPEG")


def position_px(ct: Volume, plane: Plane, at: tuple[int, int, int], pixel_mm: float) -> tuple[float, float]:
    """Column and row in `picture` (from its upper left corner, pixels) of the centre of voxel `at`."""
    _, across, down = AXES[plane]
    steps = [(ct.array.shape[axis] - at[axis] - 0.5) * ct.grid.spacing_mm[axis] for axis in (across, down)]
    return steps[0] / pixel_mm, steps[1] / pixel_mm


def _size_px(ct: Volume, plane: Plane, pixel_mm: float) -> tuple[int, int]:
    _, across, down = AXES[plane]
    sides = [ct.array.shape[axis] * ct.grid.spacing_mm[axis] / pixel_mm for axis in (across, down)]
    return max(1, round(sides[0])), max(1, round(sides[1]))


def resized(ids: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Nearest-neighbour resampling of a label picture to (width, height)."""
    columns = ((np.arange(size[0]) + 0.5) * ids.shape[1] / size[0]).astype(np.intp)
    rows = ((np.arange(size[1]) + 0.5) * ids.shape[0] / size[1]).astype(np.intp)
    return ids[np.ix_(rows, columns)]


def lettered(image: Image.Image, edges: tuple[str, str, str, str]) -> Image.Image:
    """The picture itself, with a letter at its left, right, top and bottom edge."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    width, height = image.size
    spots = ((9, height / 2), (width - 9, height / 2), (width / 2, 10), (width / 2, height - 10))
    for letter, spot in zip(edges, spots, strict=True):
        draw.text(spot, letter, fill=_LETTER, font=font, anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0))
    return image


def encoded(image: Image.Image, kind: Literal["PNG", "JPEG"]) -> bytes:
    """The picture as a file's content."""
    stream = io.BytesIO()
    options: dict[str, Any] = {"quality": 88, "subsampling": 0} if kind == "JPEG" else {"optimize": True}
    image.save(stream, kind, **options)
    return stream.getvalue()
