"""A real CT series, JPEG 2000, whose label map says where it lies (`RETROLN_REAL_DATA`)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from retroln.imaging import nifti
from retroln.imaging.dicom.study import open_study, pick
from retroln.settings import SeriesRule
from retroln.steps.workspace import open_workspace
from tests.dicom_series import KEY
from tests.way import embedded, ingest_and_prepare

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROLN_REAL_DATA"), reason="RETROLN_REAL_DATA is not set"
)


def _real() -> Path:
    return Path(os.environ["RETROLN_REAL_DATA"])


def test_the_volume_lies_on_the_grid_of_its_label_map() -> None:
    series, choice = pick(open_study((_real() / "dicom_series").iterdir()), SeriesRule())
    volume = series.volume()
    labels = nifti.read_labels(_real() / "dicom_series_labels.nii.gz")
    assert (volume.source.orientation, labels.source.orientation) == ("LPS", "LAS")
    assert volume.grid.shape == labels.grid.shape == (512, 512, 20)
    assert volume.grid.distance_mm(labels.grid) < 1e-6
    nifti.check_ct(volume, "dicom_series")
    assert volume.array.dtype == np.int16
    assert choice.chosen.sharpness == "soft" and choice.chosen.coverage_mm == 38.0
    bone = volume.array[np.isin(labels.array, (32, 33))]  # T12 and T11 of TotalSegmentator v2
    assert bone.size and 100 < float(np.median(bone)) < 400
    outside = volume.array[labels.array == 0]
    assert float(np.median(bone)) > float(np.percentile(outside, 90))


def test_a_real_series_goes_through_ingest_without_its_identity(tmp_path: Path) -> None:
    settings = embedded(tmp_path, pseudonym_key=KEY)
    case = tmp_path / "source" / "P" / "A"
    shutil.copytree(_real() / "dicom_series", case / "dicom")
    shutil.copyfile(_real() / "dicom_series_labels.nii.gz", case / "mask.nii.gz")
    ingested, _ = ingest_and_prepare(settings)
    assert ingested.done == 1
    workspace = open_workspace(settings)
    scan = workspace.catalog.current_scan("A")
    assert scan is not None and scan.mask_key is not None
    text = workspace.store.get_bytes(str(scan.series_key)).decode()
    assert len(json.loads(text)["instances"]) == 20
    for word in ("Basel", "PETCT2", "30543134", "SIEMENS", "20221208", "1.3.12.2.1107"):
        assert word not in text
