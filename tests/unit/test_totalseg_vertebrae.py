"""Which part is looked at again, what is refused, how levels are renumbered: on blocks with known answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from retroln.anatomy import totalseg_vertebrae
from retroln.anatomy.totalseg import Labelled
from retroln.anatomy.totalseg_vertebrae import cut_levels, doubt, renumber, segment
from retroln.anatomy.totalseg_weights import NETWORKS, Manifest, StoredFile, Weights, files_of
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level
from retroln.errors import LandmarkError
from retroln.imaging.geometry import VoxelBox
from retroln.imaging.volume import Volume
from retroln.settings import TotalSegSpec
from tests.spine import V2, grid_ras, spine_labels

LABELS = spine_labels()
SHAPE = LABELS.shape
WHOLE = VoxelBox((0, 0, 0), SHAPE)
FULL = TotalSegSpec(quality="full", device="cpu")


def without(*levels: Level) -> np.ndarray:
    labels = LABELS.copy()
    labels[np.isin(labels, [V2[level] for level in levels])] = 0
    return labels


def at(labels: np.ndarray, level: Level) -> np.ndarray:
    return labels == V2[level]


def bodies() -> np.ndarray:
    """What vertebrae_pp says: the front half of each block but S1, C1 being 1 and L5 24."""
    numbers = np.zeros(SHAPE, np.uint8)
    for i, level in enumerate(LEVEL_ORDER[:-1]):
        front = at(LABELS, level)
        front[:, : 17 - i] = False
        numbers[front] = 51 - V2[level]
    return numbers


@pytest.mark.parametrize(
    ("part", "cut"),
    [
        (WHOLE, []),
        (VoxelBox((20, 0, 0), SHAPE), []),
        (VoxelBox((24, 0, 0), SHAPE), list(reversed(LEVEL_ORDER))),
        (VoxelBox((0, 0, 1), SHAPE), [Level.S1]),
        (VoxelBox((0, 0, 0), (60, 60, 86)), [Level.T11]),
        (
            VoxelBox((0, 0, 0), (60, 16, 90)),
            [Level.L5, Level.L4, Level.L3, Level.L2, Level.L1, Level.T12, Level.T11],
        ),
    ],
)
def test_a_level_is_cut_where_the_part_ends_inside_the_scan(part: VoxelBox, cut: list[Level]) -> None:
    inside = np.zeros_like(LABELS)
    inside[part.slices] = LABELS[part.slices]
    assert cut_levels(Labelled(inside, part)) == cut


def test_a_level_at_the_border_of_the_scan_itself_is_not_cut() -> None:
    low = LABELS[:, :, 1:]
    assert low[:, :, 0].any()
    assert cut_levels(Labelled(low, VoxelBox((0, 0, 0), low.shape))) == []


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LABELS, ""),
        (without(Level.T11, Level.S1), ""),
        (without(Level.L3), "a level was missing between two others"),
        (without(*LEVEL_ORDER[2:7]), "no lumbar vertebra was found"),
        (np.zeros_like(LABELS), "no lumbar vertebra was found"),
    ],
)
def test_what_speaks_against_the_part_that_was_chosen(labels: np.ndarray, said: str) -> None:
    assert doubt(Labelled(labels, WHOLE)) == said


class Script:
    """Stands for `totalseg.Scan`: answers calls in turn and remembers them."""

    def __init__(self, *answers: Labelled) -> None:
        self.answers: Iterator[Labelled] = iter(answers)
        self.calls: list[dict[str, Any]] = []

    def call(self, **options: Any) -> Labelled:
        self.calls.append(options)
        return next(self.answers)


def found_by(monkeypatch: pytest.MonkeyPatch, script: Script, spec: TotalSegSpec = FULL) -> Any:
    monkeypatch.setattr(totalseg_vertebrae, "Scan", lambda *_: script)
    monkeypatch.setattr(totalseg_vertebrae, "device_of", lambda name: name)
    grid = grid_ras(SHAPE)
    files = {name: StoredFile(sha256="0" * 64, size_bytes=0) for name in files_of(NETWORKS)}
    manifest = Manifest(tasks=tuple(NETWORKS), files=files)
    return segment(Volume(LABELS, grid, grid), Weights("0" * 64, None, manifest), spec)  # type: ignore[arg-type]


def test_full_quality_looks_once_when_nothing_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(Labelled(LABELS, WHOLE))
    found = found_by(monkeypatch, script)
    assert [call.get("robust_crop", False) for call in script.calls] == [False]
    assert list(found.vertebrae.levels) == list(LEVEL_ORDER) and found.findings == ()
    subset = script.calls[0]["roi_subset"]
    assert subset and not any("rib" in name for name in subset)


def test_ribs_are_asked_for_with_the_vertebrae(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(Labelled(LABELS, WHOLE))
    found_by(monkeypatch, script, TotalSegSpec(quality="full", device="cpu", ribs=True))
    assert {"rib_left_12", "rib_right_12"} < set(script.calls[0]["roi_subset"])


def test_a_cut_level_has_the_part_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = VoxelBox((0, 0, 14), SHAPE)
    script = Script(Labelled(LABELS, tight), Labelled(LABELS, WHOLE))
    found = found_by(monkeypatch, script)
    assert [call.get("robust_crop", False) for call in script.calls] == [False, True]
    assert found.findings == (
        "robust_crop: the part looked at was chosen again, because L5 touched its border",
    )


def test_a_level_of_the_region_that_stays_cut_is_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = Labelled(LABELS, VoxelBox((0, 0, 14), SHAPE))
    with pytest.raises(LandmarkError, match="L5 ends at the border") as caught:
        found_by(monkeypatch, Script(tight, tight))
    assert caught.value.reason == "landmarks_cut"


def test_a_level_that_only_confirms_is_left_out_when_it_stays_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = Labelled(LABELS, VoxelBox((0, 0, 0), (60, 60, 84)))
    found = found_by(monkeypatch, Script(tight, tight))
    assert Level.T11 not in found.vertebrae.levels and Level.T12 in found.vertebrae.levels
    assert found.findings[1].startswith("left_out: T11")


def test_the_same_numbering_changes_nothing() -> None:
    new, findings = renumber(LABELS, bodies())
    np.testing.assert_array_equal(new, LABELS)
    assert findings == ()


def test_a_spine_that_is_one_level_off_is_numbered_as_its_bodies() -> None:
    too_high = np.where((LABELS >= 27) & (LABELS < 33), LABELS + 1, np.where(LABELS == 33, 0, LABELS)).astype(
        np.uint8
    )
    new, findings = renumber(too_high, bodies())
    for level in LEVEL_ORDER[1:7]:
        np.testing.assert_array_equal(at(new, level), at(LABELS, level))
    assert "renumbered: L4 is L5 by vertebrae_pp" in findings and len(findings) == 6


def test_a_body_that_two_levels_share_becomes_one() -> None:
    mixed = LABELS.copy()
    upper = np.zeros(SHAPE, bool)
    upper[:, :, 78 - 44 + 5 : 78 - 44 + 8] = True  # the top three slices of L3
    mixed[at(LABELS, Level.L3) & upper] = V2[Level.L2]
    new, findings = renumber(mixed, bodies())
    in_body = (bodies() > 0) & at(LABELS, Level.L3)
    assert in_body.any() and (new[in_body] == V2[Level.L3]).all()
    assert findings == ()
