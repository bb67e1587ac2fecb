"""One real, tiny training on the CPU: raw data, plan, preprocess, fold, resume, bundle, prediction."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("nnunetv2")
import torch

from retroln.engine.warm import predictor_for
from retroln.errors import ConflictError, InputError, IntegrityError, UserError
from retroln.files import sha256_file
from retroln.imaging import intensity, nifti
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.nnunet import arithmetic, bundle, checkpoint, dataset, environment, plans, splits, train
from retroln.nnunet.predict import Predictor, _convolve_by_onednn
from retroln.nnunet.trainer import RetroLNTrainer
from retroln.settings import Hu, RoiSpec, TrainSpec
from tests.machines import AVX2_ALONE

SHAPE = (40, 44, 26)
GRID = Grid(SHAPE, np.array([[2.0, 0, 0, -40], [0, 1.98, -0.42, 12], [0, 0.28, 2.97, -7], [0, 0, 0, 1]]))
# enough iterations that a signal sent after the first epoch arrives within the second
SPEC = TrainSpec(profile="demo", epochs=2, iterations=25, validation_iterations=1, n_folds=2, device="cpu")


def blobs(seed: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Noise at -100 HU with three bright balls, in HU, and the balls' mask."""
    random = np.random.default_rng(seed)
    ct = random.normal(-100, 20, SHAPE)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    mask = np.zeros(SHAPE, np.uint8)
    for _ in range(3):
        centre = random.uniform(6, np.array(SHAPE) - 6)
        mask[np.linalg.norm((index - centre) * GRID.spacing_mm, axis=-1) < 9] = 1
    ct[mask > 0] += 150
    ct[0, 0, :3] = 400  # bone: without any it is no CT
    return ct.astype(np.int16), mask


@dataclass(frozen=True)
class Finished:
    """What the one training left."""

    folders: environment.Folders
    plans_id: str
    epochs: list[dict[str, Any]]
    first_epochs: list[dict[str, Any]]
    interrupted: dict[str, Any]
    saved_epochs: int
    result: train.FoldResult
    made: bundle.Bundle


def write_cases(folder: Path) -> list[dataset.RawCase]:
    cases = []
    for number in range(4):
        ct, mask = blobs(number)
        ct_path, label_path = folder / f"c{number}_ct.nii.gz", folder / f"c{number}_mask.nii.gz"
        nifti.write(ct_path, intensity.scale(ct, Hu()), GRID)
        nifti.write(label_path, mask, GRID)
        cases.append(dataset.RawCase(f"c{number}", ct_path, label_path, f"p{number}"))
    return cases


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("nnunet")
    folders = environment.activate(root)
    cases = write_cases(root / "crops")
    dataset.write_raw(folders, cases)
    plans_id = plans.plan(folders, "demo")
    train.preprocess(folders, plans_id)
    patients = {case.case_id: case.patient_id for case in cases}
    splits.write_splits(folders.preprocessed / dataset.DATASET_NAME, splits.folds(patients, 2, 600), patients)
    first_epochs: list[dict[str, Any]] = []

    def stop_after_one(epoch: dict[str, Any]) -> None:
        first_epochs.append(epoch)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train.train_fold(folders, plans_id, 0, SPEC, stop_after_one)
    found = checkpoint.saved(train.fold_folder(folders, plans_id, 0))
    assert found is not None
    interrupted = torch.load(found.path, weights_only=False)
    epochs: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as another_machine:
        for name, value in AVX2_ALONE.items():
            another_machine.setenv(name, value)
        result = train.train_fold(folders, plans_id, 0, SPEC, epochs.append)
    contract = bundle.Contract(hu=Hu(), roi=RoiSpec(), versions=environment.versions())
    made = bundle.make(root / "bundle", folders, plans_id, (0,), contract)
    return Finished(folders, plans_id, epochs, first_epochs, interrupted, found.epochs, result, made)


def test_resumes_after_the_interrupted_epoch(finished: Finished) -> None:
    assert [epoch["epoch"] for epoch in finished.first_epochs] == [0]
    assert finished.result.resumed_at == 1
    assert [epoch["epoch"] for epoch in finished.epochs] == [1]
    journal = [json.loads(line) for line in finished.result.epochs.read_text().splitlines()]
    assert [line["epoch"] for line in journal] == [0, 1]
    assert journal[0] == finished.first_epochs[0]
    figures = {"epoch", "train_loss", "val_loss", "pseudo_dice", "lr", "seconds"}
    assert set(journal[0]) == figures | {"arithmetic"}
    assert all(np.isfinite(line["train_loss"]) and line["seconds"] > 0 for line in journal)
    assert journal[1]["lr"] < journal[0]["lr"]


def test_what_was_trained_unmirrored_is_not_mirrored_in_inference(finished: Finished) -> None:
    weights = torch.load(finished.result.checkpoint, weights_only=True)
    assert weights["inference_allowed_mirroring_axes"] is None
    assert finished.interrupted["inference_allowed_mirroring_axes"] is None


def test_journal_says_what_each_epoch_was_trained_in(finished: Finished) -> None:
    here = arithmetic.choose().arithmetic
    assert [line["arithmetic"] for line in finished.first_epochs + finished.epochs] == [here, "float32"]


def test_training_told_to_stop_saves_the_epoch_it_is_in_as_not_begun(finished: Finished) -> None:
    saved = finished.interrupted
    assert saved["current_epoch"] == finished.saved_epochs == 1
    assert {len(values) for values in saved["logging"].values()} == {1}
    (step,) = {int(state["step"]) for state in saved["optimizer_state"]["state"].values()}
    assert SPEC.iterations <= step < 2 * SPEC.iterations


def resumed(finished: Finished, folder: Path) -> RetroLNTrainer:
    """A trainer with what the interrupted training had saved; it may write to `folder`."""
    base = finished.folders.preprocessed / dataset.DATASET_NAME
    read = [json.loads((base / name).read_bytes()) for name in (f"{finished.plans_id}.json", "dataset.json")]
    trainer = RetroLNTrainer(read[0], bundle.CONFIGURATION, 0, read[1], torch.device("cpu"))
    trainer.output_folder = str(folder)
    trainer.arithmetic = finished.first_epochs[0]["arithmetic"]
    torch.save(finished.interrupted, folder / checkpoint.LATEST)
    checkpoint.record(folder / checkpoint.LATEST, sha256_file(folder / checkpoint.LATEST), 1)
    (folder / checkpoint.EPOCHS_FILE).write_text('{"epoch": 0, "train_lo')
    assert trainer.resume() == 1
    return trainer


def test_crash_between_checkpoint_and_journal_loses_no_line(finished: Finished, tmp_path: Path) -> None:
    resumed(finished, tmp_path)
    assert checkpoint.read_epochs(tmp_path / checkpoint.EPOCHS_FILE) == finished.first_epochs


def test_norms_settle_for_the_end_of_a_training(finished: Finished, tmp_path: Path) -> None:
    trainer = resumed(finished, tmp_path)
    norms = [module for module in trainer.network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    trainer.num_epochs = 10
    for trainer.current_epoch, learning in ((6, True), (7, False), (9, False)):
        trainer.on_train_epoch_start()
        assert {norm.training for norm in norms} == {learning}
    assert trainer.network.training


def test_trained_model_has_the_running_average_of_the_weights(finished: Finished, tmp_path: Path) -> None:
    trainer = resumed(finished, tmp_path)
    trainer.save_checkpoint(str(tmp_path / bundle.CHECKPOINT))
    saved = torch.load(tmp_path / bundle.CHECKPOINT, weights_only=True)["network_weights"]
    last = trainer.network.state_dict()
    assert saved.keys() == last.keys()
    for name, weight in trainer.network.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(saved[name], trainer.optimizer.average_of(weight), rtol=0, atol=0)
    assert {name for name in saved if torch.equal(saved[name], last[name])} == {
        name for name in saved if "running" in name or "num_batches" in name or "seg_layers.0" in name
    }


def test_checkpoint_that_training_did_not_write_is_not_loaded(finished: Finished, tmp_path: Path) -> None:
    torch.save(finished.interrupted, tmp_path / checkpoint.LATEST)
    with pytest.raises(IntegrityError, match="not the one that training wrote"):
        checkpoint.saved(tmp_path)


def test_reference_alone_can_be_preprocessed(tmp_path: Path) -> None:
    folders = environment.activate(tmp_path)
    dataset.write_raw(folders, write_cases(tmp_path / "crops")[:1])
    plans_id = plans.plan(folders, "reference")
    train.preprocess(folders, plans_id)
    base = folders.preprocessed / dataset.DATASET_NAME
    assert [path.name for path in base.rglob("c0.b2nd")] == ["c0.b2nd"]


def test_finished_fold_is_not_trained_again(finished: Finished) -> None:
    before = finished.result.checkpoint.stat().st_mtime_ns
    epochs: list[dict[str, Any]] = []
    train.train_fold(finished.folders, finished.plans_id, 0, SPEC, epochs.append)
    assert finished.result.checkpoint.stat().st_mtime_ns == before
    assert epochs == []


def test_fold_in_training_is_not_started_twice(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished.result.checkpoint.parent
    monkeypatch.setattr(train, "_GRACE_S", 0.0)
    with train._locked(folder), pytest.raises(ConflictError):
        train.train_fold(finished.folders, finished.plans_id, 0, SPEC)


def test_training_that_runs_out_of_time_says_so(finished: Finished) -> None:
    with pytest.raises(UserError, match="ran out of time"):
        train.train_fold(finished.folders, finished.plans_id, 1, SPEC, timeout_s=0.5)


def stock_prediction(
    finished: Finished, ct: NDArray[np.int16], folder: Path, layout: torch.memory_format
) -> tuple[Any, Any]:
    """What nnU-Net makes of the same model folder, from file to file: labels and P(node), RAS order."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    nifti.write(folder / "in" / "x_0000.nii.gz", intensity.scale(ct, Hu()), GRID)
    (folder / "out").mkdir()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(finished.made.path), (0,))
        predictor.network.to(memory_format=layout)
        if layout is torch.channels_last_3d:  # as the predictor has it
            _convolve_by_onednn(predictor.network)
        predictor.predict_from_files_sequential(
            [[str(folder / "in" / "x_0000.nii.gz")]], [str(folder / "out" / "x")], save_probabilities=True
        )
    labels = nifti.read_labels(folder / "out" / "x.nii.gz")
    return labels, np.load(folder / "out" / "x.npz")["probabilities"][1].transpose(2, 1, 0)


def test_prediction_equals_stock_nnunet(finished: Finished, tmp_path: Path) -> None:
    ct, _ = blobs(9)
    stock_labels, stock_probability = stock_prediction(finished, ct, tmp_path, torch.channels_last_3d)
    predictor = Predictor(finished.made, "cpu", "float32")
    labels, probability = predictor.predict_probabilities(Volume(ct, GRID, GRID))
    assert labels.grid is GRID and labels.array.dtype == np.uint8
    assert labels.grid.distance_mm(stock_labels.grid) < 1e-3
    np.testing.assert_allclose(probability.array, stock_probability, atol=1e-5)
    np.testing.assert_array_equal(labels.array, stock_labels.array)
    assert np.ptp(probability.array) > 0.01
    np.testing.assert_array_equal(predictor.predict(Volume(ct, GRID, GRID)).array, labels.array)


def test_layout_and_onednn_change_next_to_nothing(finished: Finished, tmp_path: Path) -> None:
    ct, _ = blobs(9)
    labels, expected = stock_prediction(finished, ct, tmp_path, torch.contiguous_format)
    got = Predictor(finished.made, "cpu", "float32").predict_probabilities(Volume(ct, GRID, GRID))
    np.testing.assert_array_equal(got[0].array, labels.array)
    # nnU-Net sums logits in half precision: a rounding that falls otherwise is a step of it
    np.testing.assert_allclose(got[1].array, expected, atol=2e-3)


def test_bf16_changes_next_to_nothing(finished: Finished) -> None:
    ct, _ = blobs(9)
    exact = Predictor(finished.made, "cpu", "float32")
    _, expected = exact.predict_probabilities(Volume(ct, GRID, GRID))
    _, got = Predictor(finished.made, "cpu", "bf16").predict_probabilities(Volume(ct, GRID, GRID))
    assert not np.array_equal(got.array, expected.array)
    # in the corners nnU-Net's half-precision weights leave steps of whole logits, in either arithmetic
    assert np.abs(got.array - expected.array).mean() < 0.005


def test_predictor_takes_what_the_machine_is_good_at(finished: Finished) -> None:
    assert Predictor(finished.made, "cpu").arithmetic == arithmetic.choose().arithmetic


def test_scaled_crop_is_refused(finished: Finished) -> None:
    ct, _ = blobs(9)
    with pytest.raises(InputError) as caught:
        predictor_for(finished.made.path, "cpu").predict(Volume(intensity.scale(ct, Hu()), GRID, GRID))
    assert caught.value.reason == "not_hu"


def test_warm_predictor_is_kept(finished: Finished) -> None:
    assert predictor_for(finished.made.path, "cpu") is predictor_for(finished.made.path, "cpu")


def test_checkpoint_changed_after_opening_is_refused(finished: Finished, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    bundle.make(copy, finished.folders, finished.plans_id, (0,), finished.made.contract)
    opened = bundle.load(copy)
    weights = copy / "fold_0" / bundle.CHECKPOINT
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    with pytest.raises(IntegrityError):
        Predictor(opened, "cpu")


def test_contract_decides_from_which_probability_a_voxel_is_node(finished: Finished, tmp_path: Path) -> None:
    ct = Volume(blobs(9)[0], GRID, GRID)
    _, probability = Predictor(finished.made, "cpu").predict_probabilities(ct)
    lenient = finished.made.contract.model_copy(update={"min_probability": 0.2})
    made = bundle.make(tmp_path / "bundle", finished.folders, finished.plans_id, (0,), lenient)
    labels = Predictor(made, "cpu").predict(ct)
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, probability.array >= 0.2)
    assert (labels.array > (probability.array >= 0.5)).any()
