"""The ledger of a folder: what it remembers, over crashes, and whom it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from retroln.catalog.accounting import Outcome
from retroln.errors import ConflictError
from retroln.steps.folder_ledger import JOURNAL, SUMMARY, Entry, FolderLedger, Stamp


def _stamp(path: Path) -> Stamp:
    return Stamp.of(path, path.name)


def _entry(folder: Path, case_id: str = "a") -> Entry:
    path = folder / f"{case_id}.bin"
    path.write_bytes(case_id.encode() * 10)
    return Entry(
        case_id, Outcome.DONE, None, None, "x" * 64, {"ct": (_stamp(path),)}, (_stamp(path),), {"rung": "l2"}
    )


def test_an_entry_survives_its_json(tmp_path: Path) -> None:
    entry = _entry(tmp_path)
    assert Entry.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry


def test_a_stamp_reads_the_bytes_only_when_size_time_or_path_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    known = _stamp(path)
    assert Stamp.of(path, "a.bin", known) is known
    os.utime(path, ns=(1, 1))
    assert Stamp.of(path, "a.bin", known).sha256 == known.sha256
    path.write_bytes(b"two")
    assert Stamp.of(path, "a.bin", known).sha256 != known.sha256
    assert Stamp.of(path, "other", known) is not known


@pytest.mark.parametrize("harm", ["truncate", "change", "remove"])
def test_harmed_output_does_not_hold(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"whole")
    stamp = _stamp(path)
    assert stamp.again(tmp_path) == stamp
    path.touch()
    assert stamp.again(tmp_path) not in (None, stamp)
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(b"who" if harm == "truncate" else b"whale")
    assert stamp.again(tmp_path) is None


def test_inputs_are_told_by_name_and_bytes_not_by_place_or_time(tmp_path: Path) -> None:
    entry = _entry(tmp_path)
    (stamp,) = entry.inputs["ct"]
    moved = Stamp(f"/elsewhere/{stamp.path}", stamp.size_bytes, 0, stamp.sha256)
    assert entry.is_about({"ct": (moved,)}, "x" * 64)
    assert not entry.is_about({"ct": (moved,)}, "y" * 64)
    assert not entry.is_about({"ct": (moved,), "mask": (moved,)}, "x" * 64)


def test_finished_run_leaves_a_summary_and_no_journal(tmp_path: Path) -> None:
    entry = _entry(tmp_path)
    with FolderLedger(tmp_path, "crop") as ledger:
        ledger.note(entry)
        ledger.finish({"cases": [entry.to_dict()], "other_cases": []})
    assert not (tmp_path / JOURNAL).exists()
    with FolderLedger(tmp_path, "crop") as ledger:
        assert ledger.entries == {"a": entry}


def test_killed_run_keeps_what_it_noted(tmp_path: Path) -> None:
    one, two = _entry(tmp_path), _entry(tmp_path, "b")
    with FolderLedger(tmp_path, "crop") as ledger:
        ledger.note(one)
        ledger.note(two)
    with (tmp_path / JOURNAL).open("a") as stream:
        stream.write('{"case_id": "c", "outc')
    (tmp_path / ".partial-x.nii.gz").touch()
    (tmp_path / ".partial-y" / "new").mkdir(parents=True)
    with FolderLedger(tmp_path, "crop") as ledger:
        assert ledger.entries == {"a": one, "b": two}
        ledger.note(_entry(tmp_path, "c"))
    with FolderLedger(tmp_path, "crop") as ledger:
        assert set(ledger.entries) == {"a", "b", "c"}
    assert not list(tmp_path.glob(".partial-*"))


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with FolderLedger(tmp_path, "crop"), pytest.raises(ConflictError, match="another run"):
        FolderLedger(tmp_path, "crop").__enter__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["mine", "[]", '{"format": 1, "command": "landmarks"}', '{"cases": []}'])
def test_summary_of_something_else_is_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / SUMMARY).write_text(content)
    with pytest.raises(ConflictError, match="belongs to something else"):
        FolderLedger(tmp_path, "crop").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [SUMMARY]
    assert (tmp_path / SUMMARY).read_text() == content


def test_journal_of_another_command_is_refused(tmp_path: Path) -> None:
    with FolderLedger(tmp_path, "landmarks") as ledger:
        ledger.note(_entry(tmp_path))
    with pytest.raises(ConflictError, match="belongs to something else"):
        FolderLedger(tmp_path, "crop").__enter__()
