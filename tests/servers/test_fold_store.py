"""What machines leave for each other, in a folder and in a real S3 server."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from retroln.errors import ConflictError, IntegrityError, NotFoundError
from retroln.settings import Settings
from retroln.steps.fold_store import FoldStore
from retroln.storage.open import open_store


class Consent:
    """Stands in for the catalog: after so many questions the dataset version is tombstoned."""

    left = 1000

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConflictError("tombstoned")


@pytest.fixture(params=["file", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> FoldStore:
    if request.param == "file":
        return FoldStore(open_store(f"file://{tmp_path}/store", Settings()), "training/a/b", Consent())
    bucket = request.getfixturevalue("s3_server").make_bucket(f"b-{secrets.token_hex(6)}")
    return FoldStore(open_store(bucket, request.getfixturevalue("s3_settings")), "training/a/b", Consent())


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"checkpoint.pth": tmp_path / "x", "fold_0/epochs.jsonl": tmp_path / "y"}
    for path in made.values():
        path.write_bytes(path.name.encode())
    return made


def test_set_is_replaced_whole_and_the_old_one_swept(
    shared: FoldStore, files: dict[str, Path], tmp_path: Path
) -> None:
    assert shared.sealed("fold_0/latest") is None
    shared.put("fold_0/latest", files, {"epochs": 1})
    files["checkpoint.pth"].write_bytes(b"later")
    later = shared.put("fold_0/latest", files, {"epochs": 2})
    shared.sweep("fold_0/latest", keep=later)
    assert len(list(shared.store.list("training/a/b/fold_0/latest/"))) == 3
    fetched = shared.fetch("fold_0/latest", tmp_path / "here")
    assert (fetched, fetched.facts) == (later, {"epochs": 2})
    assert (tmp_path / "here" / "checkpoint.pth").read_bytes() == b"later"
    assert shared.read("fold_0/latest", "fold_0/epochs.jsonl") == b"y"
    shared.sweep("fold_0/latest", keep=None)
    assert list(shared.store.list("training/")) == []
    with pytest.raises(NotFoundError, match="nothing is there yet"):
        shared.fetch("fold_0/latest", tmp_path / "here")


def test_first_machine_wins_where_it_must(shared: FoldStore, files: dict[str, Path], tmp_path: Path) -> None:
    first = shared.put("fold_0", files, {"by": "a"}, first_wins=True)
    files["checkpoint.pth"].write_bytes(b"second")
    assert shared.put("fold_0", files, {"by": "b"}, first_wins=True) == first
    shared.fetch("fold_0", tmp_path / "here")
    assert (tmp_path / "here" / "checkpoint.pth").read_bytes() == b"x"


def test_other_bytes_than_sealed_do_not_arrive(
    shared: FoldStore, files: dict[str, Path], tmp_path: Path
) -> None:
    sealed = shared.put("fold_0", files, {})
    shared.store.put_bytes(b"evil", f"training/a/b/fold_0/{sealed.name}/checkpoint.pth")
    with pytest.raises(IntegrityError, match="not those that were sealed"):
        shared.fetch("fold_0", tmp_path / "here")
    assert not (tmp_path / "here" / "checkpoint.pth").exists()


@pytest.mark.parametrize("first_wins", [True, False])
@pytest.mark.parametrize("asked", [0, 1])
def test_of_a_patient_who_withdraws_meanwhile_nothing_is_left(
    shared: FoldStore, files: dict[str, Path], asked: int, first_wins: bool
) -> None:
    """The withdrawal comes before the files are put, or while they are; another training keeps its own."""
    shared.store.put_bytes(b"another", "training/a/bc/fold_0/sealed.json")
    if asked:
        shared.put("plans", files, {})
    consent = Consent()
    consent.left = asked
    with pytest.raises(ConflictError, match="tombstoned"):
        replace(shared, require_trainable=consent).put("fold_0", files, {}, first_wins=first_wins)
    assert [info.key for info in shared.store.list("training/")] == ["training/a/bc/fold_0/sealed.json"]
