"""A thousand broken and malicious NIfTI files: each ends accepted and right, or held with a reason."""

from __future__ import annotations

import gzip
import struct
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from retroln.imaging import nifti
from retroln.steps.workspace import Workspace, open_workspace
from tests.hostile.harness import LARGEST_MB, LONGEST_S, Pass, take_in
from tests.hostile.nifti_mutations import Mutant, mutants
from tests.way import embedded


@pytest.fixture(scope="module")
def inputs() -> dict[str, Mutant]:
    """Every mutant by its name."""
    made = list(mutants())
    named = {mutant.name: mutant for mutant in made}
    assert len(named) == len(made)
    return named


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Mutant]) -> Path:
    """A source with one mutant per case."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, mutant in enumerate(inputs.values()):
        path = folder / "source" / f"PAT{number}" / mutant.name / mutant.file
        path.parent.mkdir(parents=True)
        path.write_bytes(mutant.data)
    return folder


@pytest.fixture(scope="module")
def taken(folder: Path) -> Pass:
    """What ingest made of them."""
    return take_in(folder)


def test_there_are_a_thousand_and_each_has_an_end(inputs: dict[str, Mutant], taken: Pass) -> None:
    assert len(inputs) >= 1000
    assert set(taken.verdicts) == set(inputs)
    ends = Counter(verdict.outcome for verdict in taken.verdicts.values())
    assert set(ends) == {"done", "quarantined"}, ends


def test_what_is_held_has_a_reason_and_a_message_that_names_the_fix(taken: Pass) -> None:
    held = [verdict for verdict in taken.verdicts.values() if verdict.outcome == "quarantined"]
    assert len(held) > 500
    for verdict in held:
        assert verdict.reason, verdict
        for part in ("expected", "got", "fix"):
            assert part in str(verdict.detail).lower(), verdict
        assert str(verdict.detail).isprintable() or "\n" in str(verdict.detail), verdict


def test_what_is_accepted_reads_as_another_reader_reads_it(
    inputs: dict[str, Mutant], folder: Path, taken: Pass, tmp_path: Path
) -> None:
    workspace = open_workspace(embedded(folder))
    accepted = [verdict.case_id for verdict in taken.verdicts.values() if verdict.outcome == "done"]
    assert {"sound", "sound-plain", "plain-named-gzip", "two-members"} <= set(accepted)
    for name in accepted:
        _require_same(inputs[name], workspace, tmp_path)


def test_none_takes_long_and_none_takes_the_memory(taken: Pass) -> None:
    slowest = max(taken.verdicts.values(), key=lambda verdict: verdict.seconds)
    assert slowest.seconds < LONGEST_S, slowest
    assert taken.peak_mb < LARGEST_MB


def test_nothing_is_written_where_it_does_not_belong(folder: Path, taken: Pass) -> None:
    beside = {path.name for path in folder.iterdir() if not path.name.startswith("catalog.db")}
    assert beside == {"cwd", "source", "store", "tmp", "verdicts.jsonl", "work"}
    assert list((folder / "cwd").iterdir()) == []
    assert list((folder / "tmp").iterdir()) == []


def _require_same(mutant: Mutant, workspace: Workspace, scratch: Path) -> None:
    """What was stored lies where nibabel says that the delivered voxels lie, with the values it reads."""
    scan = workspace.catalog.current_scan(mutant.name)
    assert scan is not None
    assert scan.ct_key is not None
    workspace.store.get_file(scan.ct_key, scratch / "stored.nii.gz")
    ours = nifti.read(scratch / "stored.nii.gz")
    plain = gzip.decompress(mutant.data) if mutant.data[:2] == b"\x1f\x8b" else mutant.data
    if struct.unpack_from("<f", plain, 108) == (
        0.0,
    ):  # right behind the header; nibabel reads the header as voxels
        plain = plain[:108] + struct.pack("<f", 352.0) + plain[112:]
    theirs = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(plain))
    values = np.asarray(theirs.dataobj, np.float32).reshape(theirs.shape[:3])
    np.testing.assert_allclose(ours.grid.affine, theirs.affine, atol=1e-3, err_msg=mutant.name)
    np.testing.assert_allclose(np.asarray(ours.array, np.float32), values, rtol=1e-5, err_msg=mutant.name)
