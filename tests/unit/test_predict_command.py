"""`retroln predict` on files: what it says beside the number of nodes. The network itself is a fake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from case_folders import ct_hu
from click.testing import CliRunner
from spine import grid_ras, spine_labels

from retroln.cli.predict import predict
from retroln.engine import warm
from retroln.errors import InputError
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.imaging.volume import Volume
from retroln.nnunet.bundle import Contract
from retroln.report.cautions import UNANCHORED
from retroln.settings import Hu, RoiSpec
from retroln.steps.predict import predict_file


class OneNode:
    """Finds a cube of 4 voxels a side in every crop."""

    def __init__(self, stand_in: str | None) -> None:
        self.contract = Contract(hu=Hu(), roi=RoiSpec(), stand_in=stand_in)

    def predict(self, ct: Volume) -> Volume:
        found = np.zeros(ct.grid.shape, np.uint8, order="F")
        found[5:9, 5:9, 5:9] = 1
        return ct.with_array(found)


def say(
    folder: Path, stand_in: str | None, monkeypatch: pytest.MonkeyPatch, *options: str, top: int = 90
) -> tuple[str, np.ndarray]:
    """What the command prints of a CT of `top` slices, and the label map that it writes."""
    monkeypatch.setattr(warm, "predictor_for", lambda *_: OneNode(stand_in))
    labels = np.asfortranarray(spine_labels()[:, :, :top])
    grid = grid_ras(labels.shape)
    ct = np.where(labels > 0, 700, ct_hu()[:, :, :top]).astype(np.int16, order="F")
    for name, array in (("ct", ct), ("vertebrae", labels)):
        nifti.write(folder / f"{name}.nii.gz", array, grid)
    files = [f"--{name}={folder}/{name}.nii.gz" for name in ("ct", "vertebrae", "output")]
    ran = CliRunner().invoke(predict, [*files, f"--bundle={folder}", *options], catch_exceptions=False)
    assert ran.exit_code == 0
    return ran.output, nifti.read_labels(folder / "output.nii.gz").array


def test_a_stand_in_says_so_beside_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, labels = say(tmp_path, "trained on synthetic phantoms", monkeypatch)
    assert said.splitlines()[-1].endswith(
        "output.nii.gz: 1 node. The model is a stand-in, trained on synthetic phantoms."
    )
    assert np.count_nonzero(labels) == 64


def test_a_model_that_is_none_says_the_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = say(tmp_path, None, monkeypatch)
    assert said.splitlines()[-1].endswith("output.nii.gz: 1 node")


@pytest.mark.parametrize(("shift_hu", "reason"), [(-1024, "not_ct"), (500, "not_ct"), (100, "not_hu")])
def test_a_ct_that_is_not_in_hu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom: Phantom, shift_hu: int, reason: str
) -> None:
    monkeypatch.setattr(warm, "predictor_for", lambda *_: OneNode(None))
    ct, vertebrae, output = (tmp_path / f"{name}.nii.gz" for name in ("ct", "vertebrae", "output"))
    nifti.write_source(ct, phantom.ct.with_array(phantom.ct.array + np.int16(shift_hu)))
    nifti.write_source(vertebrae, phantom.vertebrae)
    with pytest.raises(InputError, match=r"ct\.nii\.gz: .*Hounsfield") as caught:
        predict_file(ct, vertebrae, tmp_path, output, label_ids="totalseg-v2")
    assert (caught.value.reason, output.exists()) == (reason, False)


def test_an_unanchored_spine_passes_with_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = say(tmp_path, None, monkeypatch)
    assert f"  {UNANCHORED}" in said.splitlines()


def test_what_the_region_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = say(tmp_path, None, monkeypatch, top=70)
    assert said.splitlines()[1:3] == [
        "  Cut short at: superior (T12).",
        "  Cut: T12 touches the superior border.",
    ]


def test_a_person_overrules_and_the_record_beside_the_labels_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(tmp_path, None, monkeypatch)
    assert not list(tmp_path.glob("*.json"))
    said, _ = say(tmp_path, None, monkeypatch, "--accept-landmarks=counted from C2", "--reviewer=Dr A")
    assert "  By a person's word, the landmarks were accepted by Dr A." in said.splitlines()
    record = json.loads((tmp_path / "output.nii.gz.roi.json").read_text())
    assert record["accepted"] == {"reviewer": "Dr A", "comment": "counted from C2"}
    assert record["box_voxel"] == {"start": [11, 10, 12], "stop": [49, 57, 75]}
    say(tmp_path, None, monkeypatch)
    assert not list(tmp_path.glob("*.json"))
