"""What finds vertebrae in a CT: the interface between the steps and the tool that does it."""

from __future__ import annotations

from typing import Literal, Protocol

from retroln.anatomy.vertebrae import Vertebrae
from retroln.imaging.volume import Volume

Quality = Literal["full", "fast"]
Device = Literal["auto", "cpu", "gpu"]


class Segmented(Protocol):
    """What was found in one CT."""

    @property
    def vertebrae(self) -> Vertebrae:
        """T11-S1 on the CT's own grids; none found gives no levels."""
        ...

    @property
    def findings(self) -> tuple[str, ...]:
        """`code: text`: what a reader must know of how they were found, that weights are a stand-in, say."""
        ...


class Segmenter(Protocol):
    """Loaded networks, kept for many scans."""

    def segment(self, ct: Volume) -> Segmented:
        """Find the vertebrae in a CT in HU.

        Whether they are plausible is not decided here (`retroln.anatomy.landmarks.assess`).

        Raises:
            InputError: no result that could be kept.
        """
        ...


class OpenSegmenter(Protocol):
    """Loads a segmenter. A function at module level, so that every process of a pool can call it once."""

    def __call__(self, quality: Quality, device: Device) -> Segmenter:
        """The segmenter.

        Args:
            quality: `full` or `fast` (coarser voxels).
            device: `auto` takes a GPU if there is one.

        Raises:
            UserError: it cannot work on this machine (not installed, no weights, no such device).
        """
        ...

    def __hash__(self) -> int:
        """What is opened is kept under it."""
        ...
