"""What is in a crop: nodes, window, scale, labels; what two scripts that this project replaces got wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from case_folders import BOX_SLICES, SHAPE, Folders, coded_ct, ct_hu, moved_spine, nodes, retroln, write
from spine import grid_ras

from retroln.errors import GateError
from retroln.imaging import intensity, nifti
from retroln.nnunet import bundle
from retroln.nnunet.environment import Folders as TrainingFolders
from retroln.settings import Hu, RoiSpec, Settings, TrainSpec
from tests.way import ingest_and_prepare

_INSIDE, _TOTAL = 36, 6036


def _mostly_outside() -> np.ndarray:
    """36 node voxels in the region, 6000 beside it."""
    mask = np.zeros(SHAPE, np.uint8, order="F")
    mask[30:33, 30:34, 40:43] = 1
    mask[50:60, 20:40, 30:60] = 1
    return mask


def _difficult(root: Path) -> Folders:
    folders = Folders.below(root)
    for case_id in ("all", "few", "none"):
        folders.add(case_id)
    inside = np.zeros(SHAPE, np.uint8, order="F")
    inside[30:33, 30:33, 40:42] = 1
    write(folders.masks / "all.nii.gz", inside)
    write(folders.masks / "few.nii.gz", _mostly_outside())
    write(folders.masks / "none.nii.gz", np.zeros(SHAPE, np.uint8, order="F"))
    return folders


def test_defect_12_nodes_outside_the_region_are_counted_and_told(tmp_path: Path) -> None:
    """36 of 6,036 node voxels were kept, and the crop was called valid; a case without nodes was not."""
    folders = _difficult(tmp_path)
    ran = folders.crop()
    assert ran.code == 0
    found = folders.record("few")["containment"]
    assert (found["inside_voxels"], found["total_voxels"]) == (_INSIDE, _TOTAL)
    assert found["share"] == pytest.approx(_INSIDE / _TOTAL)
    assert f"few: only {_INSIDE} of {_TOTAL} node voxels lie inside the region" in ran.output
    assert folders.record("all")["containment"]["share"] == 1.0
    assert folders.record("none")["containment"]["total_voxels"] == 0
    assert folders.outcomes()["none"] == ("done", None)
    assert "all: " not in ran.output


def test_defect_12_training_refuses_such_a_case(tmp_path: Path, settings: Settings) -> None:
    """Unless a person takes responsibility."""
    from retroln.steps import train

    settings = settings.model_copy(update={"unanchored": "accept"})  # no shape of a block confirms its number
    for number in range(3):
        case = tmp_path / "source" / f"P{number}" / f"CASE{number}"
        write(case / "ct.nii.gz", coded_ct(moved_spine(), number))
        write(case / "vertebrae.nii.gz", moved_spine())
        write(case / "mask.nii.gz", nodes() if number else _mostly_outside())
    assert ingest_and_prepare(settings)[1].done == 3
    with pytest.raises(GateError, match=r"labelled nodes lie outside the region.*CASE0 0\.006"):
        train.publish_dataset(settings, TrainSpec(n_folds=2))
    record = train.publish_dataset(settings, TrainSpec(n_folds=2, override_containment=True))
    assert len(record.members) == 3


def test_defect_13_several_processes_judge_as_one_does(tmp_path: Path) -> None:
    """The parallel path never validated."""
    one, two = _difficult(tmp_path / "one"), _difficult(tmp_path / "two")
    for folders in (one, two):
        write(folders.ct / "scaled.nii.gz", np.random.default_rng(1).random(SHAPE, np.float32))
        write(folders.vertebrae / "scaled.nii.gz", moved_spine())
        write(folders.masks / "scaled.nii.gz", nodes())
    assert one.crop().code == two.crop("--processes", "2").code == 3
    assert one.outcomes() == two.outcomes()
    assert one.outcomes()["scaled"] == ("quarantined", "not_ct")
    facts = [[case["facts"] for case in folders.summary()["cases"]] for folders in (one, two)]
    assert facts[0] == facts[1]


def test_defect_14_the_window_that_is_asked_for_is_used(tmp_path: Path) -> None:
    """`--min_hu` and `--max_hu` were ignored."""
    folders = Folders.below(tmp_path)
    folders.add("a")
    assert folders.crop("--hu-window", "-200", "300").code == 0
    crop = np.asanyarray(nib.load(folders.out / "a_ct.nii.gz").dataobj)
    np.testing.assert_allclose(crop, (np.clip(ct_hu()[BOX_SLICES], -200, 300) + 200) / 500, atol=1e-6)
    assert folders.record("a")["hu_window"] == [-200.0, 300.0]
    assert folders.summary()["options"]["hu_window"] == [-200.0, 300.0]


def test_defect_15_the_scale_belongs_to_the_model_and_is_checked(tmp_path: Path) -> None:
    """The 0..1 scaling lived outside the model: raw HU became two values, and nothing noticed."""
    write(tmp_path / "scaled.nii.gz", np.asfortranarray(intensity.scale(ct_hu(), Hu())))
    write(tmp_path / "vertebrae.nii.gz", moved_spine())
    files = ("--ct", tmp_path / "scaled.nii.gz", "--vertebrae", tmp_path / "vertebrae.nii.gz")
    model = ("--bundle", tmp_path / "none", "--output", tmp_path / "labels.nii.gz")
    for command, rest in (("crop", ("--output-dir", tmp_path / "out")), ("predict", model)):
        ran = retroln(command, *files, *rest)
        assert ran.code == 3
        assert "not CT in Hounsfield units" in ran.output


def test_defect_15_a_models_window_travels_with_its_weights(tmp_path: Path) -> None:
    """What scales a CT at inference is read from the bundle; see also test_scaled_crop_is_refused."""
    folders = TrainingFolders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
    source = bundle.model_folder(folders, "Plans")
    (source / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json", f"fold_0/{bundle.CHECKPOINT}"):
        (source / name).write_text("{}")
    contract = bundle.Contract(hu=Hu(low=-200, high=300), roi=RoiSpec())
    bundle.make(tmp_path / "bundle", folders, "Plans", (0,), contract)
    assert bundle.load(tmp_path / "bundle").contract.hu == Hu(low=-200, high=300)


def test_defect_16_labels_stay_whole_numbers(tmp_path: Path) -> None:
    """Label 1 was stored as 0.996."""
    folders = Folders.below(tmp_path)
    for case_id in ("fraction", "scaled", "whole"):
        folders.add(case_id)
    write(folders.masks / "fraction.nii.gz", np.asfortranarray(nodes() * np.float32(0.996)))
    (folders.masks / "scaled.nii.gz").unlink()
    _store_as_255ths(folders.masks / "scaled.nii")
    assert folders.crop().code == 3
    assert folders.outcomes() == {
        "fraction": ("quarantined", "labels_not_integer"),
        "scaled": ("done", None),
        "whole": ("done", None),
    }
    for case_id in ("scaled", "whole"):
        mask = nib.load(folders.out / f"{case_id}_mask.nii.gz")
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asanyarray(mask.dataobj))) == {0, 1}
        assert np.array_equal(np.asanyarray(mask.dataobj), nodes()[BOX_SLICES])


def _store_as_255ths(path: Path) -> None:
    """Label 1 as 255 with a header that divides by 255, as scaling writers leave it."""
    nifti.write(path, np.asfortranarray(nodes() * np.uint8(255)), grid_ras())
    raw = bytearray(path.read_bytes())
    raw[112:116] = struct.pack("<f", 1 / 255)  # scl_slope
    path.write_bytes(raw)
