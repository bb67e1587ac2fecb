"""Checks over everything stored: does each crop lie where its record says, bit by bit?"""

from __future__ import annotations

import numpy as np

from retroln.anatomy import roi
from retroln.catalog.states import ScanState
from retroln.imaging import nifti
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace


def crops_are_exact(settings: Settings) -> bool:
    """True if every prepared crop equals its scan in the region, also after the way back.

    The crop is pasted onto the delivered grid, read as the stored scan was, and compared with the
    stored scan inside the region and with zero outside.
    """
    workspace = open_workspace(settings)
    prepared = workspace.catalog.scans(state=ScanState.PREPARED)
    return bool(prepared) and all(_is_exact(settings, scan.scan_id) for scan in prepared)


def _is_exact(settings: Settings, scan_id: int) -> bool:
    workspace = open_workspace(settings)
    scan, crop = workspace.catalog.scan(scan_id), workspace.catalog.crop_of(scan_id)
    with workspace.scratch() as folder:
        workspace.store.get_file(str(scan.ct_key), folder / "scan.nii.gz")
        workspace.store.get_file(crop.ct_key, folder / "crop.nii.gz")
        whole, cut = nifti.read(folder / "scan.nii.gz"), nifti.read(folder / "crop.nii.gz")
        region = roi.from_json(crop.roi)
        nifti.write(folder / "back.nii.gz", roi.paste(cut.array, region), region.source)
        back = nifti.read(folder / "back.nii.gz")
    expected = np.zeros_like(whole.array)
    expected[region.box.slices] = whole.array[region.box.slices]
    on_grid = back.source.shape == tuple(scan.source_shape) and np.allclose(
        back.source.affine, scan.source_affine, atol=1e-3
    )
    return bool(on_grid and np.array_equal(back.array, expected))
