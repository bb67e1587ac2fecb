"""Which cases a source holds: by table or by keys, ids matched whole, nothing dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from retroln.errors import UserError
from retroln.settings import Settings
from retroln.steps.cohort import list_cases, parts_of, stage_local
from retroln.storage.base import ObjectStore
from retroln.storage.open import open_store


@pytest.fixture
def source(settings: Settings, tmp_path: Path) -> ObjectStore:
    (tmp_path / "source").mkdir()
    return open_store(settings.source_uri, settings)


def _table(source: ObjectStore, *lines: str) -> None:
    source.put_bytes("\n".join(lines).encode(), "cases.csv")


def test_table_names_the_parts(source: ObjectStore) -> None:
    _table(
        source,
        "case_id,patient_id,ct,vertebrae,label_ids,mask",
        "A,P,a/ct.nii.gz,a/v/,verse,a/m.nii.gz",
        "B,P,b.nii.gz,,,",
    )
    first, second = list_cases(source, "totalseg-v2")
    assert (first.vertebrae, first.label_ids, first.mask) == ("a/v/", "verse", "a/m.nii.gz")
    assert (second.vertebrae, second.label_ids, second.mask) == (None, "totalseg-v2", None)


def test_ids_that_contain_each_other_stay_apart(source: ObjectStore) -> None:
    for case in ("5", "15", "53", "LN_001", "LN_002"):
        source.put_bytes(b"x", f"P/{case}/ct.nii.gz")
        source.put_bytes(case.encode(), f"P/{case}/mask.nii.gz")
    entries = list_cases(source, "totalseg-v2")
    assert {e.case_id: e.mask for e in entries} == {
        case: f"P/{case}/mask.nii.gz" for case in ("15", "5", "53", "LN_001", "LN_002")
    }


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("../x,P,a,,,", "case_id"),
        (",P,a,,,", "case_id"),
        ("A,,a,,,", "patient_id"),
        ("A,P,,,,", "ct"),
        ("A,P,a,v,v3,", "label_ids"),
    ],
)
def test_unusable_row_is_kept_with_its_problem(source: ObjectStore, line: str, column: str) -> None:
    _table(source, "case_id,patient_id,ct,vertebrae,label_ids,mask", "GOOD,P,g.nii.gz,,,", line)
    bad = next(entry for entry in list_cases(source, "totalseg-v2") if entry.case_id != "GOOD")
    assert bad.problem is not None
    assert bad.problem.reason == "bad_row"
    assert f"line 3: {column}" in str(bad.problem)


def test_missing_column_is_named(source: ObjectStore) -> None:
    _table(source, "case_id,ct", "A,a.nii.gz")
    with pytest.raises(UserError, match="add patient_id"):
        list_cases(source, "totalseg-v2")


def test_local_table_is_staged_with_absolute_paths_and_folders(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "vertebrae_L2.nii.gz").write_bytes(b"2")
    (tmp_path / "ct.nii.gz").write_bytes(b"1")
    table = tmp_path / "cases.csv"
    table.write_text(f"case_id,patient_id,ct,vertebrae\nA,P,{tmp_path}/ct.nii.gz,v\n")
    stage_local(table, tmp_path / "source")
    source = open_store(settings.source_uri, settings)
    (entry,) = list_cases(source, "totalseg-v2")
    assert source.get_bytes(entry.ct) == b"1"
    assert [info.key for info in source.list(str(entry.vertebrae))] == ["0000-vertebrae/vertebrae_L2.nii.gz"]


def test_images_outside_case_folders_are_named(source: ObjectStore) -> None:
    for key in ("P/A/ct.nii.gz", "P/ct.nii.gz", "ct.nii", "notes/readme.txt"):
        source.put_bytes(b"x", key)
    entries = {entry.case_id: entry for entry in list_cases(source, "totalseg-v2")}
    assert set(entries) == {"A", "misplaced:P/ct.nii.gz", "misplaced:ct.nii"}
    assert entries["A"].problem is None
    problem = entries["misplaced:P/ct.nii.gz"].problem
    assert problem is not None
    assert (problem.reason, problem.file) == ("misplaced", "P/ct.nii.gz")


def test_uncompressed_parts_count_and_nested_levels_do_not(source: ObjectStore) -> None:
    for name in ("ct.nii", "mask.nii", "vertebrae/vertebrae_L2.nii.gz", "vertebrae/old/vertebrae_L2.nii.gz"):
        source.put_bytes(b"x", f"P/A/{name}")
    (entry,) = list_cases(source, "totalseg-v2")
    assert (entry.ct, entry.mask, entry.vertebrae) == ("P/A/ct.nii", "P/A/mask.nii", "P/A/vertebrae/")
    (level,) = parts_of(entry, source)["vertebrae"]
    assert level.key == "P/A/vertebrae/vertebrae_L2.nii.gz"


def test_folder_name_that_is_no_id_is_held(source: ObjectStore) -> None:
    source.put_bytes(b"x", "P/LN 001/ct.nii.gz")
    (entry,) = list_cases(source, "totalseg-v2")
    assert entry.problem is not None
    assert entry.problem.reason == "bad_name"


def test_link_that_leaves_the_source_is_named(source: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "source" / "P").symlink_to(tmp_path / "elsewhere")
    (entry,) = list_cases(source, "totalseg-v2")
    assert (entry.case_id, entry.problem and entry.problem.reason) == ("misplaced:P", "misplaced")


def test_staging_leaves_nothing_of_the_last_source(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"first")
    table = tmp_path / "cases.csv"
    table.write_text("case_id,patient_id,ct\nA,P,a.nii\n")
    stage_local(table, tmp_path / "staged")
    table.write_text("case_id,patient_id,ct\n\nB,Q,missing.nii\n")
    stage_local(table, tmp_path / "staged")
    assert [path.name for path in (tmp_path / "staged").iterdir()] == ["cases.csv"]


def test_bad_row_is_named_by_its_line(source: ObjectStore) -> None:
    _table(source, "case_id,patient_id,ct", "", "A,,a.nii")
    (entry,) = list_cases(source, "totalseg-v2")
    assert entry.problem is not None
    assert entry.problem.what.startswith("line 3:")


_ROWS = "Case_ID;PATIENT_ID;Ct;Series\r\nA;P;a, b/ct.nii.gz;\r\nB;P;b.nii.gz;4\r\n;;;\r\n"


@pytest.mark.parametrize(
    "data",
    [
        _ROWS.encode(),
        b"\xef\xbb\xbf" + _ROWS.encode(),
        _ROWS.replace(";", "\t").encode("utf-16"),
        _ROWS.replace("\r\n", "\r").encode(),
        "\n".join(
            ('"case_id" , "patient_id","ct","series"', 'A,P,"a, b/ct.nii.gz"', "B,P,b.nii.gz,4")
        ).encode(),
    ],
    ids=["semicolons", "byte order mark", "tabs, UTF-16", "carriage returns", "quotes"],
)
def test_a_table_is_read_as_spreadsheets_write_it(source: ObjectStore, data: bytes) -> None:
    source.put_bytes(data, "cases.csv")
    first, second = list_cases(source, "totalseg-v2")
    assert (first.case_id, first.patient_id, first.ct, first.series) == ("A", "P", "a, b/ct.nii.gz", None)
    assert (second.case_id, second.ct, second.series) == ("B", "b.nii.gz", "4")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"case;patient_id;ct\n", ("add case_id", "got: 'case', 'patient_id', 'ct', divided by semicolons")),
        (b"", ("columns are missing", "an empty file")),
        (b"case_id,patient_id,ct,CT\n", ("a column is there twice", "keep one ct")),
        ("case_id,patient_id,ct\n".encode("utf-16-le"), ("columns are missing", "c\\x00a")),
        (b"case_id,patient_id,ct\n" + b"x" * 200_000, ("not a table", "fix: ")),
        ("case_id,patient_id,ct\nK\u00f6ln,P,a".encode("latin-1"), ("not UTF-8 text", "fix: ")),
    ],
)
def test_a_table_that_cannot_be_read_says_what_was_got(
    source: ObjectStore, data: bytes, words: tuple[str, ...]
) -> None:
    source.put_bytes(data, "cases.csv")
    with pytest.raises(UserError) as caught:
        list_cases(source, "totalseg-v2")
    assert all(word in str(caught.value) for word in words)


def test_a_line_of_too_many_cells_is_held(source: ObjectStore) -> None:
    """A comma in a path without quotes would cut it."""
    _table(source, "case_id,patient_id,ct", "A,P,Smith, John/ct.nii.gz", "B,P,b.nii.gz,,")
    first, second = list_cases(source, "totalseg-v2")
    assert first.problem is not None and first.problem.what.startswith("line 2:")
    assert second.problem is None


def test_a_table_of_another_name_is_not_passed_over(source: ObjectStore) -> None:
    source.put_bytes(b"case_id,patient_id,ct\n", "Cases.CSV")
    with pytest.raises(UserError, match=r"call it cases\.csv"):
        list_cases(source, "totalseg-v2")


def test_capitals_in_the_names_of_parts_do_not_matter(source: ObjectStore) -> None:
    for key in ("P/A/CT.NII.GZ", "P/A/Mask.nii", "P/A/VERTEBRAE/vertebrae_L2.NII.GZ", "P/B/ct.ZIP"):
        source.put_bytes(b"x", key)
    for key in ("C/DICOM/IM1", "C/MASK.DCM", "D/CT.Dcm", "P/loose.NII.GZ"):
        source.put_bytes(b"x", key)
    entries = {entry.case_id: entry for entry in list_cases(source, "totalseg-v2")}
    assert set(entries) == {"A", "B", "C", "D", "misplaced:P/loose.NII.GZ"}
    assert entries["A"].keys == {"ct": "P/A/CT.NII.GZ", "vertebrae": "P/A/VERTEBRAE/", "mask": "P/A/Mask.nii"}
    assert entries["C"].keys == {"ct": "C/DICOM/", "mask": "C/MASK.DCM"}
    assert [entries[case].patient_id for case in "BCD"] == ["P", "", ""]
    assert not entries["A"].is_named_dicom and all(entries[case].is_named_dicom for case in "BCD")


def test_names_that_differ_in_capitals_alone_are_held(source: ObjectStore) -> None:
    for key in ("P/A/ct.nii.gz", "P/A/CT.nii.gz", "P/A/mask.nii"):
        source.put_bytes(b"x", key)
    (entry,) = list_cases(source, "totalseg-v2")
    assert entry.problem is not None and entry.problem.reason == "ambiguous_name"
    assert "CT.nii.gz, ct.nii.gz" in str(entry.problem)
