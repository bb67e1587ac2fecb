"""One CT file to one label map on its own grid, without catalog or servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retroln.anatomy import landmarks, nodes, roi
from retroln.anatomy.vertebrae import Vertebrae
from retroln.errors import naming
from retroln.imaging import nifti
from retroln.imaging.geometry import require_same_grid
from retroln.settings import AskedArithmetic, Device, LabelScheme


@dataclass(frozen=True)
class PredictReport:
    """What was found in a CT and on what terms.

    Attributes:
        nodes: how many.
        findings: remarks on the vertebrae, `code: text`.
        stand_in: what a stand-in model was trained on; None for a model that is none.
    """

    nodes: int
    findings: tuple[str, ...]
    stand_in: str | None


def predict_file(
    ct: Path,
    vertebrae: Path,
    bundle: Path,
    output: Path,
    *,
    label_ids: LabelScheme,
    device: Device = "auto",
    arithmetic: AskedArithmetic = "auto",
) -> PredictReport:
    """Write a label map (one label per node, 1..n) on the grid of `ct`.

    Raises:
        InputError: unusable CT or landmarks, or grids that do not agree.
    """
    from retroln.engine.warm import predictor_for

    volume = nifti.read(ct)
    nifti.check_ct(volume, ct)
    spine = Vertebrae.read(vertebrae, label_ids)
    require_same_grid(volume.grid, spine.grid, what="vertebra label map", file=vertebrae)
    predictor = predictor_for(bundle, device, arithmetic)
    with naming(vertebrae):
        assessment = landmarks.assess(spine, unanchored="accept", ct=volume)
        region = roi.locate(spine, assessment, predictor.contract.roi, volume.source)
    predicted = predictor.predict(volume.crop(region.box))
    found = nodes.findings(predicted, predictor.contract.min_finding_mm3).astype(np.uint16)
    nifti.write(output, roi.paste(found, region), region.source)
    return PredictReport(int(found.max()), assessment.findings, predictor.contract.stand_in)
