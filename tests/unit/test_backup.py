"""What a backup refuses before it touches anything; the stack's tests save and restore for real."""

import hashlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.backup.manifest import MANIFEST, verify, write_manifest
from infra.backup.restore import _require_kept, restore
from infra.backup.save import save
from infra.stack.plan import Stack


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A sealed folder."""
    folder = tmp_path / "backup"
    (folder / "databases").mkdir(parents=True)
    (folder / "databases" / "retroln.dump").write_bytes(b"rows")
    write_manifest(folder)
    return folder


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path / "stack", 14000)


def test_a_sealed_folder_is_whole_and_its_manifest_private(backup: Path) -> None:
    verify(backup)
    assert (backup / MANIFEST).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_damaged_file_is_named(backup: Path, how: str) -> None:
    path = backup / "databases" / "retroln.dump"
    path.write_bytes(b"rowz") if how == "changed" else path.unlink()
    with pytest.raises(RuntimeError, match=r"retroln.dump is missing or damaged"):
        verify(backup)


def test_a_backup_that_was_cut_short_is_not_restored(backup: Path, stack: Stack) -> None:
    (backup / MANIFEST).unlink()
    with pytest.raises(RuntimeError, match="holds no whole backup"):
        restore(stack, backup, tell=print)
    assert not stack.home.exists()


def test_nothing_is_restored_over_a_stack(backup: Path, stack: Stack) -> None:
    stack.home.mkdir()
    (stack.home / "secrets.json").write_text("{}")
    with pytest.raises(RuntimeError, match="is not empty"):
        restore(stack, backup, tell=print)
    assert (stack.home / "secrets.json").read_text() == "{}"


def test_a_restored_object_is_read_back() -> None:
    kept = SimpleNamespace(get_object=lambda **_: {"Body": BytesIO(b"rows")})
    entry = {"key": "scans/1", "sha256": hashlib.sha256(b"rows").hexdigest()}
    _require_kept(kept, "store", entry)
    with pytest.raises(RuntimeError, match="s3://store/scans/1: the server kept other bytes"):
        _require_kept(kept, "store", {**entry, "sha256": hashlib.sha256(b"framed rows").hexdigest()})


def test_a_stack_that_is_down_cannot_be_saved(tmp_path: Path, stack: Stack) -> None:
    with pytest.raises(RuntimeError, match="nothing runs"):
        save(stack, tmp_path / "new", tell=print)
    assert not (tmp_path / "new").exists()
