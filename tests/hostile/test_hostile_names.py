"""Names, links and listings that try to leave the source, to hide, or to hang: held, and nothing leaks."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.harness import Pass, Verdict, take_in
from tests.hostile.nifti_mutations import sound_ct

_SECRET = b"nothing of this file may turn up in the store"
_BAD_FOLDERS = (
    "two words", "-dash", "tab\there", "line\nbreak", "quote'", 'double"', "back\\slash", "semi;colon",
    "$HOME", "%2e%2e", "ünïcode", "x" * 101, "~", "{braces}", "<script>", "..hidden", "\u202eright-to-left",
)  # fmt: skip
_BAD_PATHS = (
    "../outside/secret.nii.gz", "/etc/passwd", "good/../../outside/secret.nii.gz", "file:///etc/passwd",
    "s3://elsewhere/key", "http://127.0.0.1:1/ct.nii.gz", "good//GOOD/ct.nii.gz", "./good/GOOD/ct.nii.gz",
    "good\\GOOD\\ct.nii.gz", "=cmd|' /C calc'!A0", "~/ct.nii.gz", "good", "good/", "", "\u202egz.iin.tc",
    "a" * 2000, "good/GOOD/ct.nii.gz\x00.png",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose source holds one sound case, beside a secret that lies outside the source."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.nii.gz").write_bytes(gzip.compress(sound_ct() + _SECRET))
    (outside / "whole.nii.gz").write_bytes(gzip.compress(sound_ct()))
    _case(tmp_path / "source" / "good" / "GOOD")
    return tmp_path


def test_folders_whose_names_cannot_be_ids_are_held(folder: Path) -> None:
    for number, name in enumerate(_BAD_FOLDERS):
        _case(folder / "source" / f"PAT{number}" / name)
        _case(folder / "source" / name / f"CASE{number}")
    taken = take_in(folder)
    assert taken.verdicts["GOOD"].outcome == "done"
    done = {case for case, verdict in taken.verdicts.items() if verdict.outcome == "done"}
    assert done == {"GOOD"}
    hidden = 2  # a name that starts with a dot is passed over, as partial files are
    assert len(taken.verdicts) == 1 + 2 * len(_BAD_FOLDERS) - hidden
    assert {v.outcome for v in taken.verdicts.values()} == {"done", "quarantined"}


def test_links_pipes_and_folders_in_a_files_place_are_held(folder: Path) -> None:
    source, outside = folder / "source", folder / "outside"
    for case, make in {
        "LINKED-FILE": lambda path: path.symlink_to(outside / "whole.nii.gz"),
        "LINKED-ABSOLUTE": lambda path: path.symlink_to("/etc/passwd"),
        "LINKED-NOWHERE": lambda path: path.symlink_to("nowhere"),
        "LINKED-ITSELF": lambda path: path.symlink_to(path),
        "ENDLESS": lambda path: path.symlink_to("/dev/zero"),
        "PIPE": os.mkfifo,
        "FOLDER": lambda path: path.mkdir(),
    }.items():
        (source / "PAT" / case).mkdir(parents=True)
        make(source / "PAT" / case / "ct.nii.gz")
    (source / "good" / "INSIDE").mkdir()
    (source / "good" / "INSIDE" / "ct.nii.gz").symlink_to(source / "good" / "GOOD" / "ct.nii.gz")
    (source / "PAT" / "LINKED-FOLDER").symlink_to(outside)
    (source / "PAT" / "CIRCLE").symlink_to(source)
    taken = take_in(folder)
    done = {case for case, verdict in taken.verdicts.items() if verdict.outcome == "done"}
    assert done == {"GOOD", "INSIDE"}
    assert {v.outcome for v in taken.verdicts.values()} == {"done", "quarantined"}
    assert {"LINKED-FILE", "LINKED-ABSOLUTE", "ENDLESS", "PIPE"} <= set(taken.verdicts)
    _require_nothing_leaked(folder, taken)


def test_rows_of_a_listing_that_point_elsewhere_are_held(folder: Path) -> None:
    rows = ["case_id,patient_id,ct", "GOOD,good,good/GOOD/ct.nii.gz"]
    rows += [f'CASE{number},PAT{number},"{_quoted(path)}"' for number, path in enumerate(_BAD_PATHS)]
    rows += [f'"{_quoted(name)}",PAT,good/GOOD/ct.nii.gz' for name in _BAD_FOLDERS]
    (folder / "source" / "cases.csv").write_text("\n".join(rows), encoding="utf-8")
    taken = take_in(folder)
    done = {case for case, verdict in taken.verdicts.items() if verdict.outcome == "done"}
    assert done == {"GOOD"}
    assert len(taken.verdicts) == len(rows) - 1
    assert {v.outcome for v in taken.verdicts.values()} == {"done", "quarantined"}
    _require_nothing_leaked(folder, taken)


def test_how_long_an_input_may_take_follows_the_processor() -> None:
    slowest = {"BOMB": Verdict("BOMB", "quarantined", "size_mismatch", None, seconds=6.1, waited_s=6.1)}
    Pass(slowest, peak_mb=0, inflating_s=5.3).require_quick()
    with pytest.raises(AssertionError, match="BOMB"):
        Pass(slowest, peak_mb=0, inflating_s=1.8).require_quick()
    with pytest.raises(AssertionError, match="BOMB"):
        Pass(slowest, peak_mb=0, inflating_s=0.2).require_quick()


def _case(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ct.nii.gz").write_bytes(gzip.compress(sound_ct()))


def _quoted(text: str) -> str:
    return text.replace('"', '""')


def _require_nothing_leaked(folder: Path, taken: Pass) -> None:
    """No file outside was read into the store, none was changed, none hangs."""
    assert sorted(path.name for path in (folder / "outside").iterdir()) == ["secret.nii.gz", "whole.nii.gz"]
    assert not [path for path in _files(folder / "store") if _SECRET in _plain(path)]
    assert list((folder / "cwd").iterdir()) == []
    taken.require_quick()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
