"""The CT of s0328, of which bone alone is at hand (the rest 0): soft tissue in place of the 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retroln.imaging import nifti

BONE_ALONE = "totalsegdata_s0328_bone_ct"
_SOFT_TISSUE_HU = np.concatenate([np.arange(-130, -60), np.arange(10, 100)]).astype(np.int16)


def write_fleshed(bone_ct: Path, target: Path) -> Path:
    """`bone_ct` with the values of fat and muscle by turns where it holds 0; returns `target`."""
    volume = nifti.read(bone_ct)
    soft = np.resize(_SOFT_TISSUE_HU, volume.array.size).reshape(volume.array.shape)
    nifti.write_source(target, volume.with_array(np.where(volume.array == 0, soft, volume.array)))
    return target
