"""`retroln landmarks` with TotalSegmentator itself and untrained networks: it runs, and says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("totalsegmentator")

from retroln.anatomy.totalseg_weights import FAST
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.steps import landmarks_folder, weights
from tests.case_folders import retroln
from tests.tiny_networks import write_untrained


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom: Phantom) -> Path:
    """Two phantoms, and a store whose bundle the settings pin."""
    for name in ("store", "work"):
        key = "RETROLN_STORE_URI" if name == "store" else "RETROLN_WORK_DIR"
        monkeypatch.setenv(key, f"file://{tmp_path}/store" if name == "store" else str(tmp_path / "work"))
    landmarks_folder._opened.cache_clear()
    for case_id in ("A", "B"):
        nifti.write_source(tmp_path / "ct" / f"{case_id}_0000.nii.gz", phantom.ct)
    return tmp_path


def _run(places: Path) -> tuple[int, str]:
    folders = ("--input-dir", places / "ct", "--output-dir", places / "out")
    return retroln("landmarks", *folders, "--quality", "fast", "--device", "cpu")


def test_without_pinned_weights_it_ends_at_once(places: Path) -> None:
    code, said = _run(places)
    assert code == 4
    assert "no weights are pinned for TotalSegmentator" in said


def test_untrained_networks_label_noise_which_is_held(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retroln.settings import Settings

    networks = write_untrained(places / "networks", FAST)
    bundle = weights.import_weights(Settings(), [networks], stand_in="untrained")
    monkeypatch.setenv("RETROLN_TOTALSEG__WEIGHTS", bundle.sha256)
    for outcome in ("quarantined", "quarantined"):
        code, said = _run(places)
        assert code == 3, said
        summary = json.loads((places / "out" / "summary.json").read_text())
        assert [case["outcome"] for case in summary["cases"]] == [outcome] * 2
        assert summary["cases"][0]["facts"]["findings"][0].startswith("stand_in: ")
    made = nifti.read_labels(places / "out" / "A.nii.gz")
    assert made.source.distance_mm(nifti.read_grid(places / "ct" / "A_0000.nii.gz")) < 1e-3
