"""The reference plan states the published network fact by fact; nnU-Net builds exactly that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nnunetv2")

from retroln.imaging import nifti
from retroln.imaging.geometry import Grid
from retroln.nnunet import dataset, environment, plans
from retroln.settings import Profile, TrainSpec


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Both profiles' plans for two crops of 3x2x2 mm (z, y, x)."""
    root = tmp_path_factory.mktemp("plans")
    folders = environment.activate(root)
    grid = Grid((75, 90, 67), np.diag([2.0, 2.0, 3.0, 1.0]))
    random = np.random.default_rng(0)
    cases = []
    for number in range(2):
        ct = random.uniform(0.6, 0.9, grid.shape).astype(np.float32)
        mask = np.zeros(grid.shape, np.uint8)
        mask[20:28, 30:40, 20:26] = 1
        paths = [root / f"{number}_{kind}.nii.gz" for kind in ("ct", "mask")]
        nifti.write(paths[0], ct, grid)
        nifti.write(paths[1], mask, grid)
        cases.append(dataset.RawCase(f"c{number}", *paths, f"p{number}"))
    dataset.write_raw(folders, cases)
    base = folders.preprocessed / dataset.DATASET_NAME
    ids: dict[str, Profile] = {plans.plan(folders, name): name for name in ("reference", "demo")}
    return {name: json.loads((base / f"{plans_id}.json").read_text()) for plans_id, name in ids.items()}


def configuration(written: dict[str, dict[str, Any]], profile: str) -> dict[str, Any]:
    found: dict[str, Any] = written[profile]["configurations"]["3d_fullres"]
    return found


def network(written: dict[str, dict[str, Any]], profile: str) -> Any:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = configuration(written, profile)["architecture"]
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        2,
        deep_supervision=True,
    )


def test_reference_preprocessing(written: dict[str, dict[str, Any]]) -> None:
    plan, config = written["reference"], configuration(written, "reference")
    assert plan["image_reader_writer"] == "SimpleITKIO"
    assert plan["transpose_forward"] == plan["transpose_backward"] == [0, 1, 2]
    assert config["spacing"] == [2.5, 0.789, 0.789]
    assert config["patch_size"] == [64, 192, 160]
    assert config["batch_size"] == 2
    assert config["batch_dice"] is False
    assert config["median_image_size_in_voxels"] == [71, 227, 188]
    assert config["normalization_schemes"] == ["CTNormalization"]
    assert config["use_mask_for_norm"] == [False]
    data, seg = config["resampling_fn_data_kwargs"], config["resampling_fn_seg_kwargs"]
    assert (data["order"], data["order_z"], data["is_seg"]) == (3, 0, False)
    assert (seg["order"], seg["order_z"], seg["is_seg"]) == (1, 0, True)


def test_reference_intensities(written: dict[str, dict[str, Any]]) -> None:
    found = written["reference"]["foreground_intensity_properties_per_channel"]["0"]
    assert found == {
        "mean": 0.7667,
        "std": 0.0287,
        "percentile_00_5": 0.6814,
        "percentile_99_5": 0.8486,
    }


def test_reference_network_is_built_as_published(written: dict[str, dict[str, Any]]) -> None:
    from torch import nn

    net = network(written, "reference")
    assert type(net).__name__ == "PlainConvUNet"
    stages = [[m for m in stage.modules() if isinstance(m, nn.Conv3d)] for stage in net.encoder.stages]
    assert [len(convs) for convs in stages] == [2] * 6
    assert [convs[0].out_channels for convs in stages] == [32, 64, 128, 256, 320, 320]
    assert [convs[0].stride for convs in stages] == [(1, 1, 1), (1, 2, 2)] + [(2, 2, 2)] * 4
    assert [convs[1].kernel_size for convs in stages] == [(1, 3, 3)] + [(3, 3, 3)] * 5
    assert all(conv.bias is not None for convs in stages for conv in convs)
    norms = [m for m in net.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert {(norm.affine, norm.eps) for norm in norms} == {(True, 1e-5)}
    assert any(isinstance(m, nn.LeakyReLU) for m in net.modules())
    assert net.decoder.deep_supervision is True
    assert [len(stage.convs) for stage in net.decoder.stages] == [2] * 5


def test_reference_training_is_as_published(
    written: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from retroln.nnunet.trainer import RetroLNTrainer

    environment.activate(tmp_path)
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.infer_dataset_class", lambda _: None)
    described = {"labels": dataset.LABELS, "channel_names": dataset.CHANNELS, "file_ending": ".nii.gz"}
    with environment.quiet():
        trainer = RetroLNTrainer(written["reference"], "3d_fullres", 0, described, torch.device("cpu"))
        trainer.apply(TrainSpec())
        trainer.initialize()
        axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1]
    group = trainer.optimizer.param_groups[0]
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.01,
        0.99,
        True,
        3e-5,
    )
    assert type(trainer.lr_scheduler).__name__ == "PolyLRScheduler"
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
        1000,
        250,
        50,
    )
    assert trainer.oversample_foreground_percent == 0.5
    assert axes == trainer.inference_allowed_mirroring_axes == (0, 1, 2)
    assert trainer.enable_deep_supervision
    loss = trainer.loss.loss
    assert (loss.weight_ce, loss.weight_dice, loss.dc.batch_dice) == (1, 1, False)


def test_demo_follows_the_fingerprint(written: dict[str, dict[str, Any]]) -> None:
    plan, config = written["demo"], configuration(written, "demo")
    assert config["spacing"] == [3.0, 2.0, 2.0]
    assert config["patch_size"] == [24, 40, 40]
    assert config["median_image_size_in_voxels"] == [67.0, 90.0, 75.0]
    found = plan["foreground_intensity_properties_per_channel"]["0"]
    assert found["mean"] == pytest.approx(0.75, abs=0.01)
    assert plan["dataset_name"] == "Dataset600_RetroLN"
    assert list(plan["configurations"]) == ["3d_fullres"]


def test_demo_network_is_small_and_takes_its_patch(written: dict[str, dict[str, Any]]) -> None:
    import torch

    net = network(written, "demo")
    assert sum(p.numel() for p in net.parameters()) < 3e6
    with torch.inference_mode():
        outputs = net(torch.zeros(1, 1, *configuration(written, "demo")["patch_size"]))
    assert outputs[0].shape == (1, 2, 24, 40, 40)


def test_profile_is_recorded_for_the_trainer(written: dict[str, dict[str, Any]]) -> None:
    assert {name: plan[plans.PROFILE_KEY] for name, plan in written.items()} == {
        "reference": "reference",
        "demo": "demo",
    }
