"""Numbering variants as phantoms (stand-ins for patients): each ends right or with a person, never silently
wrong. The phantoms were shaped by hand, so they show that the rules hold together; how the rules fare on real
label maps is in tests/real."""

from __future__ import annotations

from functools import cache

import pytest

from retroln.anatomy.landmarks import assess
from retroln.anatomy.level_facts import measure
from retroln.anatomy.numbering import numbering
from retroln.anatomy.vertebrae import Level, Vertebrae
from retroln.errors import LandmarkError
from retroln.imaging.phantom import PhantomSpec, make_phantom, shifted_names

SEED, SPACING = 3, (3.0, 3.0, 4.0)


@cache
def _labels(
    variant: str = "usual",
    names: tuple[str, ...] = shifted_names(0),
    missing: tuple[str, ...] = (),
    ribs: str = "none",
) -> Vertebrae:
    spec = PhantomSpec(
        SEED,
        SPACING,
        node_free=True,
        extent_mm=(170.0, 300.0, 330.0),
        variant=variant,  # type: ignore[arg-type]
        level_names=names,
        missing_levels=missing,
        rib_labels=ribs,  # type: ignore[arg-type]
    )
    return Vertebrae.from_label_map(make_phantom(spec).vertebrae, "totalseg-v2")


def _verdict(*spec: object) -> str:
    """The rung, or the reason of the refusal, when nothing unconfirmed may pass."""
    try:
        return assess(_labels(*spec), unanchored="review").rung  # type: ignore[arg-type]
    except LandmarkError as error:
        return error.reason


HIGH, LOW = shifted_names(1), shifted_names(-1)
L6_LEFT_OUT = ("S1", "", "L5", "L4", "L3", "L2", "L1", "T12")
L6_IN_L5 = ("S1", "L5", "L5", "L4", "L3", "L2", "L1", "T12")
FOUR_LUMBAR = ("S1", "L4", "L3", "L2", "L1", "T12", "T11", "")
SKIPPED_L3 = ("S1", "L5", "L4", "L2", "L1", "T12", "T11", "")
HELD = {"numbering_doubtful", "landmarks_implausible", "unanchored"}


@pytest.mark.parametrize(
    ("ribs", "anchors"), [("none", ("S1",)), ("twelfth", ("S1", "ribs")), ("lowest", ("S1", "ribs"))]
)
def test_a_usual_spine_is_anchored(ribs: str, anchors: tuple[str, ...]) -> None:
    found = _labels("usual", shifted_names(0), (), ribs)
    _, facts = measure(found)
    judged = numbering(facts, found.rib_12)
    assert (judged.anchors, judged.contradicts) == (anchors, ())
    assert "T12" in judged.agrees
    assert _verdict("usual", shifted_names(0), (), ribs) == "l2"


@pytest.mark.parametrize("ribs", ["none", "twelfth"])
@pytest.mark.parametrize("missing", [(), ("S1",), ("L5", "S1"), ("T11",), ("S1", "T11")])
@pytest.mark.parametrize("names", [HIGH, LOW], ids=["too high", "too low"])
def test_a_whole_spine_shifted_by_one_level_is_held(
    names: tuple[str, ...], missing: tuple[str, ...], ribs: str
) -> None:
    assert _verdict("usual", names, missing, ribs) in HELD


@pytest.mark.parametrize("names", [HIGH, LOW], ids=["too high", "too low"])
def test_a_shift_is_held_also_where_unanchored_spines_may_pass(names: tuple[str, ...]) -> None:
    for missing in ((), ("S1",)):
        with pytest.raises(LandmarkError) as caught:
            assess(_labels("usual", names, missing), unanchored="accept")
        assert caught.value.reason == "numbering_doubtful"


def test_a_shift_that_nothing_shows_is_held_by_the_default_alone() -> None:
    """L1 to L4 under the names of L2 to L5, nothing else labelled: no shape says so."""
    alone = ("T11", "T12", "S1", "L1")
    assert _verdict("usual", LOW, alone) == "unanchored"
    passed = assess(_labels("usual", LOW, alone), unanchored="accept")
    assert passed.findings[-1].startswith("unanchored: ")


@pytest.mark.parametrize("ribs", ["none", "twelfth", "lowest"])
@pytest.mark.parametrize(
    ("variant", "names", "missing"),
    [
        pytest.param("l6", shifted_names(0), (), id="L6, counted from the sacrum"),
        pytest.param("l6", shifted_names(0), ("T11",), id="L6, counted from the sacrum, no T11"),
        pytest.param("l6", LOW, (), id="L6 called S1"),
        pytest.param("l6", L6_LEFT_OUT, (), id="L6 left out, as TotalSegmentator does"),
        pytest.param("l6", L6_IN_L5, (), id="L6 and L5 in one label"),
        pytest.param("l6", L6_LEFT_OUT, ("S1",), id="L6 and S1 left out"),
        pytest.param("sacralised_l5", LOW, (), id="sacralised L5 called S1"),
        pytest.param("sacralised_l5", LOW, ("S1",), id="sacralised L5 left out"),
        pytest.param("lumbar_rib", HIGH, (), id="vertebra with the lumbar rib called T12"),
        pytest.param("lumbar_rib", FOUR_LUMBAR, (), id="the same, four lumbar vertebrae"),
        pytest.param("usual", SKIPPED_L3, (), id="a name skipped"),
    ],
)
def test_a_variant_under_wrong_or_doubtful_names_is_held(
    variant: str, names: tuple[str, ...], missing: tuple[str, ...], ribs: str
) -> None:
    verdict = _verdict(variant, names, missing, ribs)
    right = (variant, names, missing, ribs) in [
        ("l6", L6_LEFT_OUT, ("S1",), end) for end in ("twelfth", "lowest")
    ]
    assert verdict == "l2" if right else verdict in HELD


def test_a_lumbar_rib_that_is_called_the_twelfth_is_taken_for_it() -> None:
    """The limit: whose lowest ribs are labelled as the 12th is counted from there, as radiologists do.

    Without S1 and L5 no label says that a 13th pair lies below the true 12th.
    """
    assert _verdict("lumbar_rib", HIGH, ("L5",), "none") == "unanchored"
    assert _verdict("lumbar_rib", HIGH, ("L5",), "twelfth") == "numbering_doubtful"
    assert _verdict("lumbar_rib", HIGH, ("L5",), "lowest") == "l2"


@pytest.mark.parametrize(
    ("variant", "missing", "ribs", "rung"),
    [
        ("usual", ("L3",), "none", "l2"),
        ("usual", ("L2",), "none", "interpolated_l1_l3"),
        ("usual", ("L1", "L2"), "twelfth", "extrapolated"),  # L3 alone is no measure for S1
        ("usual", ("T12", "T11"), "none", "l2"),
        ("sacralised_l5", (), "twelfth", "l2"),
    ],
)
def test_what_passes_is_right(variant: str, missing: tuple[str, ...], ribs: str, rung: str) -> None:
    """The names are the true ones in these, and where a level is missing the ladder finds its place."""
    found = assess(_labels(variant, shifted_names(0), missing, ribs), unanchored="review")
    assert found.rung == rung
    whole = assess(_labels(variant, shifted_names(0), (), ribs), unanchored="accept")
    moved_mm = [abs(a - b) * 3 for a, b in zip(found.l2[2:], whole.l2[2:], strict=True)]
    assert max(moved_mm) < 15


@pytest.mark.parametrize("tilt_deg", [-20.0, 20.0])
def test_a_tilted_scan_is_judged_like_an_upright_one(tilt_deg: float) -> None:
    for names, anchors in ((shifted_names(0), ("S1",)), (LOW, ())):
        spec = PhantomSpec(SEED, SPACING, node_free=True, tilt_deg=tilt_deg, level_names=names)
        found = Vertebrae.from_label_map(make_phantom(spec).vertebrae, "totalseg-v2")
        judged = numbering(measure(found)[1], found.rib_12)
        assert (judged.anchors, bool(judged.contradicts)) == (anchors, names == LOW)


def test_shapes_are_not_judged_where_a_border_cuts_them() -> None:
    found = _labels()
    _, facts = measure(found)
    lowest = facts[Level.S1].vertebra.box.start[2] + 3
    spec = PhantomSpec(
        SEED,
        SPACING,
        node_free=True,
        extent_mm=(170.0, 300.0, 330.0),
        field_of_view=(lowest / found.grid.shape[2], 1.0),
    )
    cut = Vertebrae.from_label_map(make_phantom(spec).vertebrae, "totalseg-v2")
    _, facts = measure(cut)
    assert facts[Level.S1].touches == ("inferior",)
    judged = numbering(facts, cut.rib_12)
    assert (judged.anchors, judged.contradicts) == ((), ())
