"""Which cases a folder holds: whole ids, nothing taken twice, nothing passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from retroln.errors import NotFoundError, UserError
from retroln.steps.folder_listing import Listing, list_cts, require_apart, shown, with_part


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def _problems(listing: Listing) -> dict[str, str | None]:
    return {case.case_id: case.problem.reason if case.problem else None for case in listing.cases}


def test_an_id_is_the_whole_name_without_extension_and_channel(tmp_path: Path) -> None:
    names = ("LN_001_0000.nii.gz", "LN_0010.nii", "P1.ser.2.nii.gz", "a_0000_b.nii.gz", "GROSS_0000.NII.GZ")
    listing = list_cts(_touch(tmp_path, *names))
    assert {case.case_id: case.parts["ct"].name for case in listing.cases} == {
        "LN_001": "LN_001_0000.nii.gz",
        "LN_0010": "LN_0010.nii",
        "P1.ser.2": "P1.ser.2.nii.gz",
        "a_0000_b": "a_0000_b.nii.gz",
        "GROSS": "GROSS_0000.NII.GZ",
    }
    assert listing.ignored == ()


def test_parts_may_end_in_capitals(tmp_path: Path) -> None:
    cts = list_cts(_touch(tmp_path / "ct", "A.nii.gz", "B.NII"))
    levels = _touch(tmp_path / "v", "A.NII.GZ", "B/VERTEBRAE_L2.Nii.Gz")
    assert _problems(with_part(cts, "vertebrae", levels, level_folders=True)) == {"A": None, "B": None}


@pytest.mark.parametrize(
    "names", [("a.nii", "a.nii.gz"), ("a.nii.gz", "a_0000.nii.gz"), ("a.NII.GZ", "a.nii.gz")]
)
def test_two_files_of_one_id_are_one_held_case_that_names_both(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    listing = list_cts(_touch(tmp_path, *names, "b.nii.gz"))
    assert _problems(listing) == {"a": "duplicate_case_id", "b": None}
    assert f"got: {names[0]}, {names[1]}" in str(listing.cases[0].problem)


def test_a_name_that_cannot_be_an_id_is_held(tmp_path: Path) -> None:
    listing = list_cts(_touch(tmp_path, "patient one.nii.gz", "b.nii.gz"))
    assert _problems(listing) == {"b": None, "patient one": "bad_name"}


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    listing = list_cts(_touch(tmp_path, "a.nii.gz", "notes.txt", "more/b.nii.gz", ".hidden.nii.gz"))
    assert [case.case_id for case in listing.cases] == ["a"]
    assert listing.ignored == ("more/", "notes.txt")


def test_a_dead_link_is_a_case_and_not_passed_over(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert [case.case_id for case in list_cts(tmp_path).cases] == ["a", "b"]


def test_pattern_chooses_and_may_look_into_folders(tmp_path: Path) -> None:
    _touch(tmp_path, "LN_1.nii.gz", "XX_1.nii.gz", "more/LN_2.nii.gz")
    assert [case.case_id for case in list_cts(tmp_path, "LN_*").cases] == ["LN_1"]
    assert [case.case_id for case in list_cts(tmp_path, "**/LN_*").cases] == ["LN_1", "LN_2"]


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("sub/a.nii.gz",)])
def test_no_ct_is_an_error_that_says_what_is_there(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(NotFoundError, match="no CT in the folder") as caught:
        list_cts(_touch(tmp_path, *names))
    assert caught.value.got == (names[0].split("a.nii")[0] if names else "nothing")
    with pytest.raises(NotFoundError, match="no such folder"):
        list_cts(tmp_path / "none")


def _with_vertebrae(root: Path, *names: str) -> Listing:
    cts = _touch(root / "ct", "5.nii.gz", "15.nii.gz", "53_0000.nii.gz")
    (root / "vertebrae").mkdir()
    listing = list_cts(cts)
    return with_part(listing, "vertebrae", _touch(root / "vertebrae", *names), level_folders=True)


def test_parts_are_matched_by_the_whole_id(tmp_path: Path) -> None:
    listing = _with_vertebrae(tmp_path, "15.nii.gz", "53/vertebrae_L2.nii.gz", "5_0000.nii.gz")
    found = {case.case_id: case.parts["vertebrae"].name for case in listing.cases}
    assert found == {"15": "15.nii.gz", "5": "5_0000.nii.gz", "53": "53"}
    assert listing.unmatched == {"vertebrae": ()}


def test_missing_and_double_parts_are_held_and_strangers_named(tmp_path: Path) -> None:
    names = ("5.nii.gz", "5/vertebrae_L2.nii.gz", "153.nii.gz", "53/T12.nii.gz")
    listing = _with_vertebrae(tmp_path, *names)
    assert _problems(listing) == {
        "15": "landmarks_missing",
        "5": "duplicate_case_id",
        "53": "landmarks_missing",
    }
    assert listing.unmatched == {"vertebrae": ("153.nii.gz",)}
    held = {case.case_id: str(case.problem) for case in listing.cases}
    assert "expected: 15.nii.gz or 15/vertebrae_<LEVEL>.nii.gz; got: nothing of that name" in held["15"]
    assert "got: 5/, 5.nii.gz" in held["5"]
    assert "got: a folder without such files" in held["53"]


def test_the_exact_name_wins_over_the_one_with_a_channel(tmp_path: Path) -> None:
    listing = _with_vertebrae(tmp_path, "5.nii.gz", "5_0000.nii.gz", "15.nii.gz", "53.nii.gz")
    assert set(_problems(listing).values()) == {None}
    assert listing.unmatched == {"vertebrae": ("5_0000.nii.gz",)}


def test_masks_come_as_files_and_each_case_needs_one(tmp_path: Path) -> None:
    listing = list_cts(_touch(tmp_path / "ct", "a.nii.gz", "b.nii.gz"))
    masks = _touch(tmp_path / "masks", "a.nii", "b/vertebrae_L2.nii.gz")
    assert _problems(with_part(listing, "mask", masks)) == {"a": None, "b": "mask_missing"}


def test_results_cannot_go_where_input_is_read(tmp_path: Path) -> None:
    source = _touch(tmp_path / "ct", "a.nii.gz")
    for output in (source, tmp_path / "other" / ".." / "ct"):
        with pytest.raises(UserError, match="cannot go where the input comes from"):
            require_apart(output, source)
    with pytest.raises(UserError):
        require_apart(tmp_path / "out", source, tmp_path / "out")
    with pytest.raises(UserError):
        require_apart(source / "out", source, nested=True)
    require_apart(source / "out", source, source / "levels")
    levels = _touch(tmp_path / "levels" / "A", "vertebrae_L2.nii.gz")  # one case's
    for output in (levels, levels / "out"):
        with pytest.raises(UserError, match=r"got: a place in .*levels"):
            require_apart(output, source, tmp_path / "levels")


@pytest.mark.parametrize(("pattern", "folder"), [("a*", ""), ("*/a*", "more"), ("**/a*", "more/deep")])
def test_what_the_pattern_leaves_out_is_no_stranger(tmp_path: Path, pattern: str, folder: str) -> None:
    source = tmp_path / "ct"
    _touch(source / folder, "a.nii.gz", "b_0000.nii.gz")
    masks = _touch(tmp_path / "masks", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    listing = with_part(list_cts(source, pattern), "mask", masks)
    assert [case.case_id for case in listing.cases] == ["a"]
    assert listing.unmatched == {"mask": ("c.nii.gz",)}


def test_many_names_are_shortened() -> None:
    assert shown([]) == ""
    assert shown(list("abcdefg")) == "a, b, c, d, e and 2 more"
