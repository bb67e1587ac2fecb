"""A whole volume in Hounsfield units passes, however it was taken; in other units it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging import nifti
from retroln.imaging.hounsfield import doubts
from retroln.imaging.phantom import Phantom

Change = Callable[[NDArray[np.float32]], NDArray[Any]]


def _beside_the_round_field_of_view(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    x, y = (np.linspace(-1, 1, side) for side in hu.shape[:2])
    return np.broadcast_to((x[:, None] ** 2 + y**2 > 1)[..., None], hu.shape)


def _monoenergetic(fat: float, soft: float, bone: float) -> Change:
    """As at another energy: a factor for each of fat, soft tissue and bone."""

    def change(hu: NDArray[np.float32]) -> NDArray[np.float32]:
        factor = np.select([hu < -300, hu < -30, hu < 80], [1.0, fat, soft], bone)
        return (hu * factor).astype(np.float32)

    return change


def _noisy(sigma_hu: float) -> Change:
    return lambda hu: hu + np.random.default_rng(0).normal(0, sigma_hu, hu.shape)


def _magnetic_resonance(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fat and soft tissue bright, air noise, and the undershoot of a resampling at the skin."""
    noise = np.abs(np.random.default_rng(0).normal(0, 12, hu.shape)).astype(np.float32)
    bright = np.where(hu < -300, noise, 1787 * np.clip((hu + 1000) / 2000, 0, 1))
    bright[1:] -= 0.06 * np.maximum(np.diff(hu, axis=0), 0)
    return np.maximum(bright, -58)


SOUND: dict[str, Change] = {
    "as it is": lambda hu: hu,
    "air clipped at -1000": lambda hu: np.maximum(hu, -1000),
    "air clipped at -1024": lambda hu: np.maximum(hu, -1024),
    "clipped to the network's window": lambda hu: np.clip(hu, -1000, 400),
    "padded with -2000": lambda hu: np.where(_beside_the_round_field_of_view(hu), -2000, hu),
    "padded with -3024": lambda hu: np.where(_beside_the_round_field_of_view(hu), -3024, hu),
    "all air replaced by -2000": lambda hu: np.where(hu < -300, -2000, hu),
    "no air in it": lambda hu: hu[25:-25, 25:-25],
    "very noisy": _noisy(100),
    "40 keV": _monoenergetic(1.9, 1.4, 2.4),
    "metal": lambda hu: np.where(hu > 300, 3071, hu),
}
WRONG: dict[str, tuple[Change, str]] = {
    **{f"{shift:+d}": (lambda hu, by=shift: hu + by, "") for shift in (-1024, -1000, -500, -300, -200)},
    **{f"{shift:+d}": (lambda hu, by=shift: hu + by, "") for shift in (200, 300, 500, 1000, 1024)},
    "twice": (lambda hu: 2 * hu, "air does not lie at -1000"),
    "half": (lambda hu: np.where(hu > 250, 3071, hu) / 2, "air does not lie at -1000"),
    "a tenth": (lambda hu: hu / 10, "bone above 200"),
    "the sign turned": (lambda hu: -hu, "as bright as dense bone"),
    "window -160..240": (lambda hu: np.clip(hu, -160, 240), "expected: no single value in 25%"),
    "window -150..250": (lambda hu: np.clip(hu, -150, 250), "got: -150 in"),
    "a ceiling of 210": (lambda hu: np.minimum(hu, 210), "clipped at the top"),
    "0 outside the body": (lambda hu: np.where(hu < -300, 0, hu), "clipped or masked"),
    "bone alone": (lambda hu: np.where(hu < 200, 0, hu), "got: 0 in"),
    "0..255": (lambda hu: np.interp(hu, [-1000, 1000], [0, 255]), ""),
    "0..4095": (lambda hu: np.clip(hu + 1024, 0, 4095), "neither fat nor air"),
    "z-scores": (lambda hu: (hu - hu.mean()) / hu.std(), ""),
    "attenuation in 1/cm": (lambda hu: (hu / 1000 + 1) * 0.19, ""),
    "attenuation in 1/m": (lambda hu: (hu / 1000 + 1) * 190, ""),
    "MR, resampled": (_magnetic_resonance, "neither fat nor air"),
}


@pytest.fixture(scope="module")
def hu(phantom: Phantom) -> NDArray[np.float32]:
    return phantom.ct.array.astype(np.float32)


@pytest.mark.parametrize("name", SOUND)
def test_a_ct_in_hu_passes(hu: NDArray[np.float32], name: str) -> None:
    assert list(doubts(SOUND[name](hu))) == []


@pytest.mark.parametrize("name", WRONG)
def test_other_units_are_refused_with_what_was_expected_and_found(
    phantom: Phantom, hu: NDArray[np.float32], name: str
) -> None:
    change, said = WRONG[name]
    wrong = change(hu).astype(np.float32)
    with pytest.raises(
        InputError, match=r"scan: not CT in Hounsfield units.*; expected: .*; got: "
    ) as caught:
        nifti.check_ct(phantom.ct.with_array(wrong), "scan")
    assert (caught.value.reason, said in str(caught.value)) == ("not_ct", True)


def test_the_same_is_said_of_every_memory_order(hu: NDArray[np.float32]) -> None:
    wrong = hu + 500
    assert list(doubts(np.asfortranarray(wrong))) == list(doubts(np.ascontiguousarray(wrong)))
