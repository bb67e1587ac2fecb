"""What the stand-in networks are tried on: a platform that has them pinned, phantoms held out from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from retroln.anatomy.totalseg_weights import Weights
from retroln.imaging.phantom import Phantom, PhantomSpec, make_phantom
from retroln.settings import Settings

FIRST_HELD_OUT_SEED = 90_000
_SPACINGS_MM = ((1.2, 1.2, 3.0), (1.5, 1.5, 2.0), (1.0, 1.3, 5.0), (2.0, 2.0, 2.5))
_ORIENTATIONS = ("LPS", "RAS", "LAS", "PIR", "RPI", "SAL")


class Platform(NamedTuple):
    """A platform whose pinned weights are the stand-ins."""

    settings: Settings
    weights: Weights


def held_out(count: int, **changes: object) -> Iterator[Phantom]:
    """Patients that no network has seen, in several orientations, spacings and phases, some tilted."""
    for number in range(count):
        spec = {
            "spacing_mm": _SPACINGS_MM[number % len(_SPACINGS_MM)],
            "orientation": _ORIENTATIONS[number % len(_ORIENTATIONS)],
            "phase": ("portal", "native", "arterial")[number % 3],
            "tilt_deg": (0.0, 6.0, -5.0)[number % 3],
            **changes,
        }
        yield make_phantom(PhantomSpec(FIRST_HELD_OUT_SEED + number, **spec))  # type: ignore[arg-type]
