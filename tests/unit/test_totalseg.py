"""TotalSegmentator in this process, with untrained networks in its layout: what its own call would give."""

from __future__ import annotations

import inspect
import multiprocessing.process
import os
import socket
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("totalsegmentator")
import torch

from infra.stand_in_weights.recipe import SAID
from retroln.anatomy import landmarks, totalseg
from retroln.anatomy.totalseg_vertebrae import segment
from retroln.anatomy.totalseg_weights import FAST, NETWORKS, NUMBERING, RIBS, ROUGH, VERTEBRAE, Weights
from retroln.errors import IntegrityError, LandmarkError, MissingExtraError, NotFoundError, UserError
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid, upright
from retroln.imaging.phantom import PhantomSpec, make_phantom
from retroln.imaging.volume import Volume
from retroln.nnunet.environment import quiet
from retroln.settings import TotalSegSpec
from tests.fresh_totalseg import home_with, label, overlaps
from tests.tiny_networks import pinned, write_untrained

pytestmark = pytest.mark.timeout(900)
SMALL = PhantomSpec(3, (3.0, 2.5, 4.0), orientation="LPS", extent_mm=(150, 140, 160))
TINY = PhantomSpec(3, (3.0, 3.0, 3.0), extent_mm=(75, 75, 75))
FULL = TotalSegSpec(quality="full", device="cpu")
QUICK = TotalSegSpec(quality="fast", device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("tiny")
    networks = write_untrained(folder / "networks", FAST, ROUGH, VERTEBRAE)
    return pinned(folder, networks, quality="full")[1]


@pytest.fixture(scope="module")
def ct() -> Volume:
    return make_phantom(SMALL).ct


@pytest.fixture(scope="module")
def stock(tiny: Weights, ct: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps that TotalSegmentator's own function made in a fresh process: fast.nii.gz, full.nii.gz."""
    folder = tmp_path_factory.mktemp("stock")
    nifti.write_source(folder / "ct.nii.gz", ct)
    maps = {quality: folder / f"{quality}.nii.gz" for quality in ("fast", "full")}
    label(folder / "ct.nii.gz", home_with(tiny.folder, folder), **maps)
    return folder


@pytest.mark.parametrize("spec", [QUICK, FULL], ids=lambda spec: spec.quality)
def test_labels_are_those_of_a_fresh_process(
    spec: TotalSegSpec, tiny: Weights, ct: Volume, stock: Path
) -> None:
    theirs = nib.load(stock / f"{spec.quality}.nii.gz")
    made = segment(ct, tiny, spec).labels
    ours = made.to_source()
    assert made.source.orientation == "LPS"
    np.testing.assert_allclose(theirs.affine, made.source.affine, atol=1e-4)
    found = overlaps(np.asarray(theirs.dataobj), ours)
    assert set(found) & set(range(26, 34)), "untrained networks label at random; choose another seed"
    assert min(found.values()) >= 0.999, found


def test_a_second_case_loads_nothing_and_starts_no_process(
    tiny: Weights, ct: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(ct, tiny, QUICK)
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("it was loaded or started again")

    monkeypatch.setattr(nnUNetPredictor, "initialize_from_trained_model_folder", forbidden)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", forbidden)
    assert segment(ct, tiny, QUICK).labels.array.any()


def test_no_socket_is_opened(tiny: Weights, ct: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("192.0.2.1", 443))  # the trap works
    asked.clear()
    segment(ct, tiny, QUICK)
    segment(ct, tiny, FULL)
    assert asked == []


def test_everything_replaced_is_put_back(tiny: Weights, ct: Volume) -> None:
    with quiet():
        from totalsegmentator import nnunet, python_api
    before = nnunet.nnUNetv2_predict, nnunet.crop_to_mask, python_api.download_pretrained_weights
    environment, threads = dict(os.environ), torch.get_num_threads()
    segment(ct, tiny, QUICK)
    assert (nnunet.nnUNetv2_predict, nnunet.crop_to_mask, python_api.download_pretrained_weights) == before
    assert dict(os.environ) == environment
    assert torch.get_num_threads() == threads
    assert not list(tiny.folder.rglob("config.json"))


def test_the_replacement_takes_what_the_replaced_function_takes() -> None:
    with quiet():
        from totalsegmentator.nnunet import nnUNetv2_predict as theirs

    def taken(function: Any) -> list[tuple[str, Any]]:
        return [
            (p.name, p.default) for p in inspect.signature(function).parameters.values() if p.name != "self"
        ]

    assert taken(totalseg._Call.predict) == taken(theirs)


def test_the_table_of_networks_is_theirs() -> None:
    with quiet():
        from totalsegmentator.map_tasks_config import TASK_CONFIGS, TASK_ID_WEIGHTS_CONFIGS
        from totalsegmentator.map_to_binary import class_map, class_map_5_parts
        from totalsegmentator.registry import requires_license

    modes = TASK_CONFIGS["total"]["sub_modes"]
    trainers = {
        FAST: modes["fast"]["trainer"],
        ROUGH: modes["fastest"]["trainer"],
        VERTEBRAE: modes["default"]["trainer"],
        RIBS: modes["default"]["trainer"],
        NUMBERING: TASK_CONFIGS["vertebrae_pp"]["trainer"],
    }
    labels = {
        FAST: class_map["total"],
        ROUGH: class_map["total"],
        VERTEBRAE: class_map_5_parts["class_map_part_vertebrae"],
        RIBS: class_map_5_parts["class_map_part_ribs"],
        NUMBERING: class_map["vertebrae_pp"],
    }
    assert set(NETWORKS) == set(trainers)
    for task, network in NETWORKS.items():
        assert network.dataset == TASK_ID_WEIGHTS_CONFIGS[task]["foldername"]
        assert network.trainer == trainers[task]
        assert network.labels == len(labels[task]) + 1
    assert (modes["fast"]["task_id"], modes["fastest"]["task_id"]) == (FAST, ROUGH)
    assert {VERTEBRAE, RIBS} <= set(modes["default"]["task_id"])
    assert TASK_CONFIGS["vertebrae_pp"]["task_id"] == NUMBERING
    assert not requires_license("total") and not requires_license("vertebrae_pp")


def test_ribs_and_numbering_run_through_their_networks(tmp_path: Path) -> None:
    networks = write_untrained(tmp_path / "networks", FAST, ROUGH, VERTEBRAE, RIBS)
    write_untrained(networks, NUMBERING, blank=True)
    spec = {"quality": "full", "ribs": True, "refine": True}
    found = segment(make_phantom(TINY).ct, pinned(tmp_path, networks, **spec)[1], TotalSegSpec(**spec))  # type: ignore[arg-type]
    assert found.findings[0] == f"stand_in: {SAID}"
    assert not any(finding.startswith("renumbered") for finding in found.findings)
    assert set(np.unique(found.labels.array)) & {103, 115}


def test_a_numbering_that_sees_one_body_is_for_a_person(tmp_path: Path) -> None:
    networks = write_untrained(tmp_path / "networks", FAST, NUMBERING)
    spec = TotalSegSpec(quality="fast", refine=True)
    with pytest.raises(LandmarkError, match="saw all vertebrae as one"):
        segment(make_phantom(TINY).ct, pinned(tmp_path, networks)[1], spec)


def test_a_sheared_scan_is_labelled_on_its_own_grid(tiny: Weights, ct: Volume) -> None:
    shear = np.eye(4)
    shear[1, 2] = 0.3
    sheared = Volume.from_source(ct.to_source(), Grid(ct.source.shape, shear @ ct.source.affine))
    found = segment(sheared, tiny, QUICK)
    assert found.labels.grid is sheared.grid
    straight = upright(sheared.grid)
    assert straight is not sheared.grid
    expected = segment(Volume(sheared.array, straight, straight), tiny, QUICK)
    np.testing.assert_array_equal(found.labels.array, expected.labels.array)


def test_where_the_rough_network_sees_nothing_the_case_is_refused(ct: Volume, tmp_path: Path) -> None:
    blank = write_untrained(tmp_path / "networks", FAST, ROUGH, VERTEBRAE, blank=True)
    found = segment(ct, pinned(tmp_path, blank, quality="full")[1], FULL)
    assert [finding.split(":")[0] for finding in found.findings] == ["stand_in", "robust_crop"]
    with pytest.raises(LandmarkError) as caught:
        landmarks.assess(found.vertebrae, unanchored="accept")
    assert caught.value.reason == "no_lumbar_level"


def test_a_checkpoint_that_was_changed_is_not_loaded(ct: Volume, tmp_path: Path) -> None:
    _, copy = pinned(tmp_path, write_untrained(tmp_path / "networks", FAST))
    checkpoint = copy.folder / NETWORKS[FAST].folder / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(IntegrityError, match="bytes do not match"):
        segment(ct, copy, QUICK)


def test_a_network_that_is_not_in_the_bundle_is_not_downloaded(ct: Volume, tmp_path: Path) -> None:
    _, copy = pinned(tmp_path, write_untrained(tmp_path / "networks", FAST))
    with pytest.raises(NotFoundError, match="asks for network 298"):
        segment(ct, copy, FULL)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totalseg, "VERSION", "2.19.0")
    with pytest.raises(MissingExtraError, match=r"2\.19\.0 is needed; got: 2\.18"):
        totalseg.require_installed()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_an_error_and_auto_takes_the_cpu() -> None:
    with pytest.raises(UserError, match="no GPU"):
        totalseg.device_of("gpu")
    assert totalseg.device_of("auto") == totalseg.device_of("cpu") == "cpu"
