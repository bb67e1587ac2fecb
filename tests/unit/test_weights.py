"""Bundles of weights: in by folder or zip, pinned by one hash, checked before use. No file is a network."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from retroln.anatomy.totalseg_weights import FAST, MODEL_FILES, NETWORKS, ROUGH, VERTEBRAE, files_of, needed
from retroln.cli.doctor import _landmarks
from retroln.cli.weights import weights as command
from retroln.errors import InputError, IntegrityError, NotFoundError, SettingsError, UserError
from retroln.settings import Settings, TotalSegSpec
from retroln.steps import prepare, weights, weights_copy
from retroln.steps.weights import PREFIX, copy_folder
from retroln.steps.workspace import open_workspace
from tests.way import embedded


def write_network(folder: Path, task: int, *, labels: int | None = None, **more: Any) -> Path:
    """Files under the names of a network, without a network in them; returns the dataset's folder."""
    network = NETWORKS[task]
    named = {str(number): number for number in range(labels or network.labels)}
    contents = ("{}", json.dumps({"labels": named, **more}), f"checkpoint {task}")
    for name, content in zip(MODEL_FILES, contents, strict=True):
        path = folder / network.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / network.dataset


def pinned(settings: Settings, folder: Path, sha256: str | None, **spec: Any) -> Settings:
    """The same platform with TotalSegmentator switched on."""
    assert settings.landmarks == "delivered"
    return embedded(folder, landmarks="totalseg", totalseg=TotalSegSpec(weights=sha256, **spec))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What TotalSegmentator keeps in `~/.totalsegmentator`, with a network that RetroLN has no use for."""
    folder = tmp_path / "home" / "nnunet" / "results"
    for task in (FAST, ROUGH, VERTEBRAE):
        write_network(folder, task)
    (folder / "Dataset291_TotalSegmentator_part1_organs_1559subj").mkdir()
    return folder


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_folder_is_imported_from_any_height_above(
    depth: int, settings: Settings, tmp_path: Path, results: Path
) -> None:
    source = [results, *results.parents][depth]
    found = weights.import_weights(settings, [source])
    assert found.manifest.tasks == (VERTEBRAE, FAST, ROUGH)
    assert set(found.manifest.files) == set(files_of([FAST, ROUGH, VERTEBRAE]))
    assert found.manifest.stand_in is None and "Apache-2.0" in found.manifest.licence
    stored = {info.key for info in open_workspace(settings).store.list(f"{PREFIX}/")}
    assert stored == {f"{PREFIX}/{found.sha256}/{name}" for name in [*found.manifest.files, "manifest.json"]}


def test_the_same_networks_have_the_same_hash_however_they_come(
    settings: Settings, tmp_path: Path, results: Path
) -> None:
    first = weights.import_weights(settings, [results])
    zips = tmp_path / "zips"
    zips.mkdir()
    for task in (FAST, ROUGH, VERTEBRAE):
        dataset = results / NETWORKS[task].dataset
        with zipfile.ZipFile(zips / f"{dataset.name}.zip", "w") as archive:
            archive.writestr("__MACOSX/._x", b"")
            for path in sorted(dataset.rglob("*")):
                archive.write(path, path.relative_to(results))
    listed = [zips / f"{NETWORKS[task].dataset}.zip" for task in (VERTEBRAE, FAST, ROUGH)]
    single = [results / NETWORKS[task].dataset for task in (FAST, ROUGH, VERTEBRAE)]
    for sources in ([zips], listed, single, [results, zips]):
        assert weights.import_weights(settings, sources).sha256 == first.sha256
    assert [bundle.sha256 for bundle in weights.bundles(settings)] == [first.sha256]


def test_another_byte_is_another_bundle(settings: Settings, results: Path) -> None:
    first = weights.import_weights(settings, [results])
    (results / NETWORKS[FAST].folder / MODEL_FILES[2]).write_text("another")
    second = weights.import_weights(settings, [results])
    assert {bundle.sha256 for bundle in weights.bundles(settings)} == {first.sha256, second.sha256}


def test_a_network_that_says_it_stands_in_makes_the_bundle_a_stand_in(
    settings: Settings, tmp_path: Path
) -> None:
    write_network(tmp_path / "w", FAST, stand_in="trained on phantoms")
    found = weights.import_weights(settings, [tmp_path / "w"])
    assert found.manifest.stand_in == "trained on phantoms"
    assert "not TotalSegmentator's weights" in found.manifest.licence


def test_a_person_can_say_that_it_stands_in(settings: Settings, results: Path) -> None:
    found = weights.import_weights(settings, [results], stand_in="half trained", licence="ours")
    assert (found.manifest.stand_in, found.manifest.licence) == ("half trained", "ours")


def test_two_sources_that_differ_are_refused(settings: Settings, tmp_path: Path, results: Path) -> None:
    write_network(tmp_path / "other", FAST, numTraining=3)
    with pytest.raises(UserError, match="two sources differ"):
        weights.import_weights(settings, [results, tmp_path / "other"])


def test_a_network_of_another_task_under_this_name_is_refused(settings: Settings, tmp_path: Path) -> None:
    write_network(tmp_path / "w", FAST, labels=25)
    with pytest.raises(UserError, match="network 297 is another one; expected: 118 labels"):
        weights.import_weights(settings, [tmp_path / "w"])


def test_half_a_network_is_none(settings: Settings, tmp_path: Path) -> None:
    write_network(tmp_path / "w", FAST)
    (tmp_path / "w" / NETWORKS[FAST].folder / MODEL_FILES[2]).unlink()
    with pytest.raises(NotFoundError, match="no whole network"):
        weights.import_weights(settings, [tmp_path / "w"])
    assert list(open_workspace(settings).store.list(f"{PREFIX}/")) == []


@pytest.mark.parametrize("start", ["../../", "/etc/", "a/../../"])
def test_a_zip_that_leaves_its_folder_is_refused(start: str, settings: Settings, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(f"{start}{files_of([FAST])[0]}", "{}")
    with pytest.raises(InputError) as caught:
        weights.import_weights(settings, [tmp_path / "bad.zip"])
    assert caught.value.reason == "unsafe_key"


@pytest.mark.parametrize(
    ("spec", "ids"),
    [
        ({"quality": "fast"}, (297,)),
        ({"quality": "fast", "ribs": True, "refine": True}, (297, 803)),
        ({"quality": "full"}, (298, 297, 292)),
        ({"quality": "full", "ribs": True, "refine": True}, (298, 297, 292, 295, 803)),
    ],
)
def test_which_networks_a_way_needs(spec: dict[str, Any], ids: tuple[int, ...]) -> None:
    assert needed(TotalSegSpec(**spec)) == ids


def test_prepare_does_not_begin_without_pinned_weights(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"RETROLN_TOTALSEG__WEIGHTS.*; got: nothing; fix: "):
        prepare.backlog(pinned(settings, tmp_path, None))


def test_prepare_does_not_begin_with_weights_that_are_not_there(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no such weights bundle.*retroln weights import"):
        prepare.backlog(pinned(settings, tmp_path, "0" * 64))


def test_prepare_does_not_begin_when_a_network_is_missing(settings: Settings, tmp_path: Path) -> None:
    write_network(tmp_path / "w", FAST)
    found = weights.import_weights(settings, [tmp_path / "w"])
    assert prepare.backlog(pinned(settings, tmp_path, found.sha256, quality="fast")).left == ()
    with pytest.raises(NotFoundError, match=r"lacks a network.*298.*292") as caught:
        prepare.backlog(pinned(settings, tmp_path, found.sha256))
    assert "RETROLN_TOTALSEG__QUALITY" in str(caught.value)


def test_prepare_does_not_begin_when_a_file_of_them_is_gone_or_short(
    settings: Settings, tmp_path: Path, results: Path
) -> None:
    found = weights.import_weights(settings, [results])
    store, chosen = open_workspace(settings).store, pinned(settings, tmp_path, found.sha256)
    name = f"{PREFIX}/{found.sha256}/{NETWORKS[ROUGH].folder}/{MODEL_FILES[2]}"
    store.put_bytes(b"short", name)
    with pytest.raises(IntegrityError, match="another size"):
        prepare.backlog(chosen)
    store.delete(name)
    with pytest.raises(NotFoundError):
        prepare.backlog(chosen)


def test_a_manifest_that_was_changed_is_refused(settings: Settings, tmp_path: Path, results: Path) -> None:
    found = weights.import_weights(settings, [results])
    changed = found.manifest.model_copy(update={"stand_in": None, "licence": "anything"})
    open_workspace(settings).store.put_bytes(changed.dump(), f"{PREFIX}/{found.sha256}/manifest.json")
    with pytest.raises(IntegrityError, match="manifest is another one"):
        prepare.backlog(pinned(settings, tmp_path, found.sha256))


def test_a_machine_fetches_once_and_checks_every_byte(
    settings: Settings, tmp_path: Path, results: Path
) -> None:
    pytest.importorskip("totalsegmentator")
    found = weights.import_weights(settings, [results])
    chosen = pinned(settings, tmp_path, found.sha256, device="cpu")
    copy = weights_copy.fetch(chosen)
    assert copy.folder == copy_folder(chosen, found.sha256)
    on_disk = {path.relative_to(copy.folder).as_posix() for path in copy.folder.rglob("*") if path.is_file()}
    assert on_disk == set(found.manifest.files)
    assert [path.name for path in copy.folder.parent.iterdir()] == [found.sha256]
    (copy.folder / NETWORKS[FAST].folder / MODEL_FILES[2]).write_text("checkpoint 666")
    weights_copy._fetched.cache_clear()
    with pytest.raises(IntegrityError, match=r"damaged.*delete"):
        weights_copy.fetch(chosen)
    with pytest.raises(IntegrityError, match="damaged"):
        weights.verify(chosen, found.sha256)


def test_verify_reads_every_byte_in_the_store(settings: Settings, results: Path) -> None:
    found = weights.import_weights(settings, [results])
    assert weights.verify(settings, found.sha256) == found
    key = f"{PREFIX}/{found.sha256}/{NETWORKS[FAST].folder}/{MODEL_FILES[2]}"
    open_workspace(settings).store.put_bytes(b"checkpoint 298", key)
    with pytest.raises(IntegrityError, match="other bytes than were imported"):
        weights.verify(settings, found.sha256)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RETROLN_STORE_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("RETROLN_WORK_DIR", f"{tmp_path}/work")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(command, arguments, catch_exceptions=False)

    return run


def test_the_commands_import_show_and_verify(
    run: Any, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no weights" in run("list").output
    imported = run("import", str(results), "--stand-in", "half trained").output
    sha256 = imported.splitlines()[0]
    assert f"RETROLN_TOTALSEG__WEIGHTS={sha256}" in imported
    monkeypatch.setenv("RETROLN_TOTALSEG__WEIGHTS", sha256)
    listed = run("list").output
    assert f"{sha256}  <- pinned" in listed and "STAND-IN: half trained" in listed
    assert "297: total at 3 mm" in listed
    assert "every byte" in run("verify").output
    assert "every byte" in run("verify", sha256).output


def test_the_doctor_tells_what_is_wrong_with_the_weights(
    settings: Settings, tmp_path: Path, results: Path
) -> None:
    pytest.importorskip("totalsegmentator")
    assert _landmarks(settings).seen.startswith("delivered")
    missing = _landmarks(pinned(settings, tmp_path, None))
    assert not missing.well and "RETROLN_TOTALSEG__WEIGHTS" in missing.seen + missing.fix
    found = weights.import_weights(settings, [results], stand_in="half trained")
    well = _landmarks(pinned(settings, tmp_path, found.sha256))
    assert well.well and f"full, STAND-IN weights {found.sha256[:16]}" in well.seen
