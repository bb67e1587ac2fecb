"""A file is whole or absent."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from retroln import files
from retroln.steps.files import crop_files, paste_file
from retroln.tracking.registry import MlflowRegistry
from retroln.tracking.runs import attach
from tests.stand_in import register
from tests.way import ingest_and_prepare


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "report.json"
    target.write_bytes(b"old")

    def fail():
        with files.atomic_path(target) as partial:
            partial.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_failure_leaves_no_new_file(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "new.json", {"dice": float("nan")})
    with pytest.raises(TypeError):
        files.write_bytes(tmp_path / "new.bin", "text")
    assert list(tmp_path.iterdir()) == []


def test_the_target_is_untouched_until_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "er" / "x.bin"
    with files.atomic_path(target) as partial:
        partial.write_bytes(b"new")
        assert not target.exists()
        assert partial.parent == target.parent
    assert target.read_bytes() == b"new"
    assert not partial.exists()


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("c1.nii.gz", ".nii.gz"), ("c.1.2.nii.gz", ".nii.gz"), ("a.json", ".json"), ("plain", "")],
)
def test_the_temporary_file_keeps_the_extensions(tmp_path, name, suffix):
    with files.atomic_path(tmp_path / name) as partial:
        assert partial.name.endswith(suffix) and partial.name.startswith(".partial-")


@pytest.fixture(params=[0o077, 0o027, 0o002], ids="{:03o}".format)
def umask(request):
    """What an operator set: private, readable by the group, shared with the group."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    """The modes of every file and every folder below, but for code that MLflow copies as it was installed."""
    paths = [path for path in folder.rglob("*") if path.suffix != ".py"]
    found = [(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths]
    return {mode for is_dir, mode in found if not is_dir}, {mode for is_dir, mode in found if is_dir}


def test_the_mode_is_what_umask_leaves_of_0666(tmp_path, umask):
    files.write_bytes(tmp_path / "a" / "new", b"1")
    (tmp_path / "a" / "old").touch(0o600)
    files.write_bytes(tmp_path / "a" / "old", b"2")
    files.ensure_file(tmp_path / "a" / "database")
    files.ensure_file(tmp_path / "a" / "database")
    assert modes(tmp_path) == ({0o666 & ~umask}, {0o777 & ~umask})


@pytest.mark.parametrize("umask", [0o007], indirect=True, ids=["007"])
def test_umask_holds_for_everything_that_the_steps_and_the_file_tools_leave(
    tmp_path, umask, settings, deliver
):
    folder = deliver("CASE", "P1")
    ingest_and_prepare(settings)
    register(settings, tmp_path / "model", stand_in="for the modes of its files")
    registry = MlflowRegistry.of(settings)
    registry.fetch(1, tmp_path / "work" / "models")
    attach(settings, "0" * 32).log_metrics({"dice": 0.5})  # no such run: it waits in the journal
    crop_files(folder / "ct.nii.gz", folder / "vertebrae.nii.gz", tmp_path / "crop")
    paste_file(tmp_path / "crop/ct_ct.nii.gz", tmp_path / "crop/ct_roi.json", tmp_path / "crop/back.nii")
    assert list((tmp_path / "work" / "journals").iterdir())
    assert modes(tmp_path) == ({0o660}, {0o770})


def test_a_folder_in_the_way_is_an_error_without_leftovers(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):
        files.write_bytes(tmp_path / "x", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_json_is_sorted_and_reads_back(tmp_path):
    files.write_json(tmp_path / "x.json", {"b": [1, None], "a": "ä"})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": "ä", "b": [1, None]}
    assert text.index('"a"') < text.index('"b"') and text.endswith("}\n")


def test_hashes_agree(tmp_path):
    data = os.urandom(3 * (1 << 20) + 17)
    files.write_bytes(tmp_path / "x", data)
    assert files.sha256_file(tmp_path / "x") == files.sha256_bytes(data) == hashlib.sha256(data).hexdigest()
    assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json({"b": 2, "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": "1"})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.sha256_json(float("inf"))


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file that is remembered although it is new, and the names of files that were read to be hashed."""
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    monkeypatch.setattr(files, "_hashes", {})
    (tmp_path / "weights").write_bytes(b"weights 0")
    return tmp_path / "weights"


@pytest.fixture
def reads(monkeypatch):
    found, genuine = [], files._sha256_stream
    monkeypatch.setattr(
        files, "_sha256_stream", lambda stream: found.append(Path(stream.name)) or genuine(stream)
    )
    return found


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def after_a_tick(path, change):
    """`change` a file until its clock has gone on; some milliseconds."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        change()


def test_an_unchanged_file_is_hashed_once(weights, reads):
    assert {files.sha256_unchanged(weights) for _ in range(3)} == {sha256(b"weights 0")}
    assert files.read_unchanged(weights) == (b"weights 0", sha256(b"weights 0"))
    assert reads == [weights]


def in_place(path):
    times = path.stat()
    path.write_bytes(b"weights X")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def by_another(path):
    times = path.stat()
    path.with_name("other").write_bytes(b"weights X")
    os.utime(path.with_name("other"), ns=(times.st_atime_ns, times.st_mtime_ns))
    path.with_name("other").replace(path)


@pytest.mark.parametrize("change", [in_place, by_another])
def test_other_bytes_of_the_same_size_and_time_are_noticed(weights, change):
    files.sha256_unchanged(weights)
    after_a_tick(weights, lambda: change(weights))
    assert files.read_unchanged(weights) == (b"weights X", sha256(b"weights X"))
    assert files.sha256_unchanged(weights) == sha256(b"weights X")


def test_a_file_that_was_just_written_is_hashed_each_time(weights, reads, monkeypatch):
    monkeypatch.setattr(files, "SETTLED_NS", 3600 * 10**9)
    files.sha256_unchanged(weights)
    weights.write_bytes(b"weights X")
    assert files.sha256_unchanged(weights) == sha256(b"weights X")
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(weights, monkeypatch):
    genuine = files._sha256_stream

    def meanwhile(stream):
        found = genuine(stream)
        after_a_tick(weights, lambda: weights.write_bytes(b"weights X"))
        return found

    monkeypatch.setattr(files, "_sha256_stream", meanwhile)
    files.sha256_unchanged(weights)
    assert files._hashes == {}
