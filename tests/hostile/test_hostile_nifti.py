"""A thousand broken and malicious NIfTI files: each ends accepted and right, or held with a reason."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from retroln.imaging import nifti
from retroln.steps.workspace import Workspace, open_workspace
from tests.hostile.harness import Pass, require_nothing_beside, take_in
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
    for mutant in inputs.values():
        path = folder / "source" / "PAT" / mutant.name / mutant.file
        path.parent.mkdir(parents=True)
        path.write_bytes(mutant.data)
    return folder


@pytest.fixture(scope="module")
def taken(folder: Path) -> Pass:
    """What ingest made of them."""
    return take_in(folder)


def test_there_are_a_thousand_and_each_ends_quickly(inputs: dict[str, Mutant], taken: Pass) -> None:
    assert len(inputs) >= 1000
    taken.require_ends(inputs)
    assert len(inputs) - len(taken.done) > 500


def test_what_is_accepted_reads_as_another_reader_reads_it(
    inputs: dict[str, Mutant], folder: Path, taken: Pass, tmp_path: Path
) -> None:
    workspace = open_workspace(embedded(folder))
    assert {"sound", "sound-plain", "plain-named-gzip", "two-members", "many-members"} <= taken.done
    for name in taken.done:
        _require_same(inputs[name], workspace, tmp_path)


def test_nothing_is_written_where_it_does_not_belong(folder: Path, taken: Pass) -> None:
    require_nothing_beside(folder)


def _require_same(mutant: Mutant, workspace: Workspace, scratch: Path) -> None:
    """What was stored lies where nibabel says that the delivered voxels lie, with the values it reads."""
    scan = workspace.catalog.current_scan(mutant.name)
    assert scan is not None
    assert scan.ct_key is not None
    workspace.store.get_file(scan.ct_key, scratch / "stored.nii.gz")
    ours = nifti.read(scratch / "stored.nii.gz")
    plain = gzip.decompress(mutant.data) if mutant.data[:2] == b"\x1f\x8b" else mutant.data
    theirs = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(_with_offset(plain)))
    values = np.asarray(theirs.dataobj, np.float32).reshape(theirs.shape[:3])
    np.testing.assert_allclose(ours.grid.affine, theirs.affine, atol=1e-3, err_msg=mutant.name)
    np.testing.assert_allclose(np.asarray(ours.array, np.float32), values, rtol=1e-5, err_msg=mutant.name)


def _with_offset(plain: bytes) -> bytes:
    """The file with an offset of 0 spelt out, which nibabel would take at its word: the header as voxels."""
    said = struct.unpack_from("<f", plain, 108)[0]
    return plain[:108] + struct.pack("<f", said or 352.0) + plain[112:]
