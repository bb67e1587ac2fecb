"""One CT file to one label map on its own grid, without catalog or servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retroln.anatomy import landmarks, nodes, roi
from retroln.anatomy.vertebrae import Vertebrae
from retroln.files import require_outside, write_json
from retroln.imaging import nifti
from retroln.imaging.geometry import require_same_grid
from retroln.report.cautions import cautions
from retroln.settings import AskedArithmetic, Device, LabelScheme
from retroln.steps.files import acceptance, case_id_of, checked_output, terms
from retroln.steps.words import Words


@dataclass(frozen=True)
class PredictReport:
    """What was found in a CT and on what terms.

    Attributes:
        nodes: how many.
        cautions: what a reader must know of the landmarks and the region.
        stand_in: what a stand-in model was trained on; None for a model that is none.
        roi: record of the region, which is written where a person overruled the checks of the landmarks.
    """

    nodes: int
    cautions: tuple[str, ...]
    stand_in: str | None
    roi: Path | None


def predict_file(
    ct: Path,
    vertebrae: Path,
    bundle: Path,
    output: Path,
    *,
    label_ids: LabelScheme,
    device: Device = "auto",
    arithmetic: AskedArithmetic = "auto",
    words: Words | None = None,
) -> PredictReport:
    """Write a label map (one label per node, 1..n) on the grid of `ct`.

    With `words` the landmarks count as labelled, whatever the checks say; `<output>.roi.json` beside it then
    says who wants it so and why.

    Raises:
        InputError: unusable CT or landmarks, or grids that do not agree.
        UserError: `words` that do not say who and why.
        UserError, OSError: as `retroln.steps.files.checked_output`, before anything is read.
    """
    from retroln.engine.warm import predictor_for

    require_outside(output, vertebrae)
    target, ruling = checked_output(output, ct, vertebrae), acceptance(words)
    volume, spine = nifti.read_ct(ct), Vertebrae.read(vertebrae, label_ids)
    require_same_grid(volume.grid, spine.grid, what="vertebra label map", file=vertebrae)
    predictor = predictor_for(bundle, device, arithmetic)
    with landmarks.naming_inputs(ct, vertebrae):
        assessment = landmarks.assess(spine, unanchored="accept", ct=volume, ruling=ruling)
        region = roi.locate(spine, assessment, predictor.contract.roi, volume.source)
    predicted = predictor.predict(volume.crop(region.box))
    found = nodes.findings(predicted, predictor.contract.min_finding_mm3).astype(np.uint16)
    record = target.with_name(f"{target.name}.roi.json")  # `<id>_roi.json` may be that of a crop
    if words:
        said = {"case_id": case_id_of(target), **roi.to_json(region), **terms(assessment, words)}
        write_json(record, said)
    nifti.write(target, roi.paste(found, region), region.source)
    if not words:
        record.unlink(missing_ok=True)  # of an earlier run
    return PredictReport(
        nodes=int(found.max()),
        cautions=tuple(cautions(assessment, region.clamped_sides)),
        stand_in=predictor.contract.stand_in,
        roi=record if words else None,
    )
