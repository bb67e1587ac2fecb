"""A label map lies on bone of its CT, or the case waits for a person."""

from __future__ import annotations

import numpy as np
import pytest

from retroln.anatomy.landmarks import Ruling, assess
from retroln.anatomy.on_bone import bone_contrast
from retroln.anatomy.vertebrae import Level, Vertebrae
from retroln.errors import LandmarkError
from retroln.imaging.phantom import Phantom


def _spine(phantom: Phantom, shift: int = 0, axis: int = 0) -> Vertebrae:
    labels = np.roll(phantom.vertebrae.array, shift, axis)
    return Vertebrae.from_label_map(phantom.vertebrae.with_array(labels), "totalseg-v2")


def test_labels_of_the_phantom_lie_on_its_bone(phantom: Phantom) -> None:
    found = assess(_spine(phantom), unanchored="review", ct=phantom.ct)
    contrasts = [level["bone_contrast_hu"] for level in found.per_level.values()]
    assert len(contrasts) == 8 and min(contrasts) > 60


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [2, -2, 3, -3, 4, -4, 6, -6])
def test_a_label_map_moved_by_8_to_24_mm_is_refused(phantom: Phantom, axis: int, shift: int) -> None:
    with pytest.raises(LandmarkError) as caught:
        assess(_spine(phantom, shift, axis), unanchored="accept", ct=phantom.ct)
    assert caught.value.reason == "off_bone"


def test_a_person_may_overrule_it(phantom: Phantom) -> None:
    found = assess(
        _spine(phantom, 6), unanchored="review", ct=phantom.ct, ruling=Ruling("Dr A", accepted=True)
    )
    assert any(
        finding.startswith("accepted: the labelled levels do not lie on bone") for finding in found.findings
    )


def test_contrast_is_inside_less_outside() -> None:
    from spine import grid_ras, spine, spine_labels

    from retroln.imaging.volume import Volume

    labels = spine_labels()
    labels[24:36, :, :][:, 15:17, 45:53] = 0  # a notch in L2: some rest in its box
    ct = np.where(labels > 0, 300, 40).astype(np.int16)
    place = grid_ras()
    contrast = bone_contrast(Volume(ct, place, place), spine(labels))
    assert set(contrast) == {Level.L2}  # the boxes of the others hold nothing else
    assert contrast[Level.L2].here_hu == 260.0


def test_a_ct_of_another_shape_is_a_bug(phantom: Phantom) -> None:
    from spine import spine

    with pytest.raises(ValueError, match="CT must be"):
        bone_contrast(phantom.ct, spine())
