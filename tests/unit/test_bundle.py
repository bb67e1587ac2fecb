"""A bundle is used only if every byte is the recorded one and nothing else lies in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from retroln.errors import IntegrityError, NotFoundError
from retroln.files import sha256_file
from retroln.nnunet import bundle
from retroln.nnunet.environment import Folders
from retroln.settings import Hu, RoiSpec

CONTRACT = bundle.Contract(hu=Hu(), roi=RoiSpec(), stand_in="trained on phantoms")


def trained_folders(root: Path) -> Folders:
    """Results folder of two folds; the bytes stand for weights, which a bundle never opens."""
    folders = Folders(root / "raw", root / "preprocessed", root / "results")
    source = bundle.model_folder(folders, "Plans")
    for fold in (0, 1):
        (source / f"fold_{fold}").mkdir(parents=True)
        (source / f"fold_{fold}" / bundle.CHECKPOINT).write_bytes(b"weights %d" % fold)
        (source / f"fold_{fold}" / "training_log.txt").write_text("not part of the model")
    (source / "plans.json").write_text("{}")
    (source / "dataset.json").write_text("{}")
    return folders


@pytest.fixture
def made(tmp_path: Path) -> bundle.Bundle:
    return bundle.make(tmp_path / "bundle", trained_folders(tmp_path), "Plans", (0, 1), CONTRACT)


def test_what_was_made_is_what_is_loaded(made: bundle.Bundle) -> None:
    loaded = bundle.load(made.path, made.sha256)
    assert loaded == made
    assert loaded.contract == CONTRACT
    assert loaded.folds == (0, 1)
    assert loaded.read("fold_1/checkpoint_final.pth") == b"weights 1"
    files = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert files == {
        "contract.json",
        "dataset.json",
        "fold_0/checkpoint_final.pth",
        "fold_1/checkpoint_final.pth",
        "manifest.json",
        "plans.json",
    }


def test_same_training_gives_the_same_hash(made: bundle.Bundle, tmp_path: Path) -> None:
    shutil.copytree(made.path, tmp_path / "copy")
    assert bundle.load(tmp_path / "copy").sha256 == made.sha256


def flip_weights(path: Path) -> None:
    (path / "fold_0" / bundle.CHECKPOINT).write_bytes(b"weights X")


def add_file(path: Path) -> None:
    (path / "extra.py").write_text("import os")


def remove_fold(path: Path) -> None:
    (path / "fold_1" / bundle.CHECKPOINT).unlink()


def link_weights(path: Path) -> None:
    weights = path / "fold_0" / bundle.CHECKPOINT
    weights.rename(path.parent / "moved")
    weights.symlink_to(path.parent / "moved")


def forget_contract(path: Path) -> None:
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    del manifest["files"][bundle.CONTRACT]
    (path / bundle.MANIFEST).write_text(json.dumps(manifest))


def escape(path: Path) -> None:
    (path.parent / "outside").write_bytes(b"x")
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    manifest["files"]["../outside"] = sha256_file(path.parent / "outside")
    (path / bundle.MANIFEST).write_text(json.dumps(manifest))


def garble_manifest(path: Path) -> None:
    (path / bundle.MANIFEST).write_text("[1, 2")


@pytest.mark.parametrize(
    "damage",
    [flip_weights, add_file, remove_fold, link_weights, forget_contract, escape, garble_manifest],
    ids=lambda damage: damage.__name__,
)
def test_damaged_bundle_is_refused(made: bundle.Bundle, damage: Callable[[Path], None]) -> None:
    damage(made.path)
    with pytest.raises(IntegrityError):
        bundle.load(made.path)


def test_consistent_forgery_fails_against_the_registry(made: bundle.Bundle) -> None:
    flip_weights(made.path)
    manifest = json.loads((made.path / bundle.MANIFEST).read_text())
    weights = f"fold_0/{bundle.CHECKPOINT}"
    manifest["files"][weights] = sha256_file(made.path / weights)
    (made.path / bundle.MANIFEST).write_text(json.dumps(manifest))
    bundle.load(made.path)
    with pytest.raises(IntegrityError):
        bundle.load(made.path, made.sha256)


def test_bytes_changed_after_opening_are_refused(made: bundle.Bundle) -> None:
    flip_weights(made.path)
    with pytest.raises(IntegrityError):
        made.read(f"fold_0/{bundle.CHECKPOINT}")


def test_untrained_fold_leaves_no_bundle(tmp_path: Path) -> None:
    folders = trained_folders(tmp_path)
    with pytest.raises(NotFoundError, match="fold_2"):
        bundle.make(tmp_path / "bundle", folders, "Plans", (0, 2), CONTRACT)
    assert not (tmp_path / "bundle").exists()


def test_bundle_is_replaced_whole(made: bundle.Bundle, tmp_path: Path) -> None:
    again = bundle.make(
        made.path,
        Folders(*(tmp_path / n for n in ("raw", "preprocessed", "results"))),
        "Plans",
        (0,),
        CONTRACT,
    )
    assert again.folds == (0,)
    assert not (made.path / "fold_1").exists()


def test_missing_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"manifest\.json"):
        bundle.load(tmp_path)


def test_contract_is_frozen_and_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError):
        CONTRACT.hu = Hu(low=-900)
    with pytest.raises(ValidationError):
        bundle.Contract.model_validate({**CONTRACT.model_dump(), "window": 1})
