"""A file is whole or absent."""

import hashlib
import json
import os
import stat

import pytest

from retroln import files


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


def test_files_are_readable_by_others(tmp_path):
    files.write_bytes(tmp_path / "x", b"1")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


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
