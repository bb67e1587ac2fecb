"""Attenuation in HU by contrast phase.

Mid-range abdominal values (vessels, kidneys and liver about 70 s after injection for `portal`,
30 s for `arterial`); the spread by patient keeps a fixed threshold from working.
"""

from __future__ import annotations

import numpy as np

from retroln.imaging.phantom.spec import Phase

_PHASE_COLUMN: dict[Phase, int] = {"native": 0, "arterial": 1, "portal": 2}
_HU: dict[str, tuple[float, float, float]] = {
    "aorta": (42, 290, 150),
    "cava": (40, 70, 112),
    "renal_vein": (40, 150, 140),
    "small_vein": (40, 55, 105),
    "cortex": (33, 190, 185),
    "medulla": (33, 75, 160),
    "liver": (56, 68, 108),
    "spleen": (48, 120, 118),
    "muscle": (52, 56, 62),
    "bowel_wall": (36, 80, 84),
    "gland": (38, 85, 88),
    "node": (40, 64, 88),
}


def draw(rng: np.random.Generator, phase: Phase) -> dict[str, float]:
    """HU by tissue for one patient; the same draws whatever the phase."""
    circulation, offset = float(rng.normal(1, 0.12)), float(rng.normal(0, 3))
    column = _PHASE_COLUMN[phase]
    native = {name: values[0] for name, values in _HU.items()}
    hu = {
        name: native[name] + offset + circulation * (values[column] - native[name])
        for name, values in _HU.items()
    }
    hu["fat"] = -104.0 + float(rng.normal(0, 4))
    hu["ureter"] = 350.0 if rng.uniform() < 0.2 and phase == "portal" else 18.0
    return hu
