"""The same voxels give the same file, byte for byte: dataset versions hold the sha256 of crops."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isal import isal_zlib

from retroln.imaging import nifti
from retroln.imaging.geometry import Grid
from retroln.imaging.nifti_header import encode

_GRID = Grid((7, 5, 3), np.diag([0.8, 0.8, 1.5, 1]))
_VOXELS = np.arange(7 * 5 * 3, dtype=np.int16).reshape(_GRID.shape)
_PLACES = 60_000  # about one in four thousand is such that the bytes are others
_BUFFER_BYTES = 1 << 21


@pytest.fixture(scope="module")
def elsewhere() -> Any:
    """One of ISA-L's compressors at an address where it packs a whole header otherwise than elsewhere.

    Only its code for x86-64 has such addresses.
    """
    header = encode(_VOXELS.dtype, _GRID)

    def packed(compressor: Any) -> bytes:
        out: bytes = compressor.compress_and_crc(header, b"")[0]
        return out

    usual = packed(isal_zlib._ParallelCompress(buffersize=_BUFFER_BYTES, level=1))
    between = []
    for _ in range(_PLACES):
        between.append(np.empty(66_000, np.uint8))  # so that the next one lies in other memory
        compressor = isal_zlib._ParallelCompress(buffersize=_BUFFER_BYTES, level=1)
        if packed(compressor) != usual:
            return compressor
    if platform.machine() != "x86_64":
        return compressor
    pytest.fail("ISA-L packs alike wherever it lies: `nifti.write` need not pack the first bytes apart")


def test_whatever_the_compressors_place_in_memory(
    elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nifti.write(tmp_path / "here.nii.gz", _VOXELS, _GRID)
    usual, waiting = isal_zlib._ParallelCompress, [elsewhere]
    monkeypatch.setattr(
        isal_zlib, "_ParallelCompress", lambda **how: waiting.pop() if waiting else usual(**how)
    )
    nifti.write(tmp_path / "there.nii.gz", _VOXELS, _GRID)
    assert not waiting, "it was not used"
    assert (tmp_path / "there.nii.gz").read_bytes() == (tmp_path / "here.nii.gz").read_bytes()
    assert np.array_equal(nifti.read(tmp_path / "there.nii.gz").array, _VOXELS)
