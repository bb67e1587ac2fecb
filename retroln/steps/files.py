"""Crop and paste for single files: no catalog, no store, no settings beyond the arguments."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroln.anatomy import landmarks, roi
from retroln.anatomy.vertebrae import Vertebrae
from retroln.endings import NIFTI, has_ending, without_nifti
from retroln.errors import InputError, NotFoundError, UserError, naming
from retroln.files import atomic_path, require_no_input, require_outside, require_writable, write_json
from retroln.imaging import intensity, nifti
from retroln.imaging.geometry import require_same_grid
from retroln.imaging.volume import Volume
from retroln.settings import Hu, LabelScheme, RoiSpec
from retroln.steps.words import Words

_RECORD = "name the <id>_roi.json that `retroln crop` wrote beside the crop"
_CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class CropReport:
    """What a crop wrote and on what terms.

    Attributes:
        case_id: prefix of the files.
        ct, mask, roi: the files; `mask` is None when no mask was given.
        record: the content of the roi file.
    """

    case_id: str
    ct: Path
    mask: Path | None
    roi: Path
    record: dict[str, Any]


def case_id_of(path: Path, *, keep_channel: bool = False) -> str:
    """Name without .nii or .nii.gz and, unless `keep_channel`, without nnU-Net's `_0000`."""
    name = without_nifti(path.name)
    return name if keep_channel else name.removesuffix("_0000")


def is_case_id(text: str) -> bool:
    """True if `text` can name a file: letters, digits, dot, dash, underscore; a letter or digit first."""
    return _CASE_ID.fullmatch(text) is not None


def crop_names(case_id: str) -> tuple[str, str, str]:
    """Names of a crop's CT, mask and record."""
    return f"{case_id}_ct.nii.gz", f"{case_id}_mask.nii.gz", f"{case_id}_roi.json"


def crop_files(
    ct: Path,
    vertebrae: Path,
    output_dir: Path,
    *,
    mask: Path | None = None,
    label_ids: LabelScheme = "totalseg-v2",
    normalize: bool = True,
    hu: Hu | None = None,
    case_id: str | None = None,
    spec: RoiSpec | None = None,
    words: Words | None = None,
) -> CropReport:
    """Write `<id>_ct.nii.gz`, `<id>_mask.nii.gz` (when given) and, last, `<id>_roi.json`; all RAS+.

    The CT is scaled to 0..1 as float32 over `hu`, or kept as HU in its stored type when `normalize` is
    False. A mask of an earlier crop is removed when none is given. What an earlier crop left stays until
    this one is written whole. With `words` the landmarks count as labelled, whatever the checks say, and the
    record says who wants it so and why.

    Raises:
        InputError, GeometryError, LandmarkError, NotFoundError: unusable or unfitting input; nothing
            is written then.
        UserError: `words` that do not say who and why, or a result would take the place of an input.
    """
    name = _checked_id(case_id_of(ct) if case_id is None else case_id)
    ct_path, mask_path, roi_path = (output_dir / file for file in crop_names(name))
    for place in (ct_path, mask_path, roi_path):
        require_no_input(place, ct, vertebrae, mask)
    require_outside(output_dir, vertebrae)
    window = (hu or Hu()) if normalize else None
    ruling = acceptance(words)
    scan, spine = nifti.read_ct(ct), Vertebrae.read(vertebrae, label_ids)
    with landmarks.naming_inputs(ct, vertebrae):
        require_same_grid(scan.grid, spine.grid, what="vertebra label map")
        assessment = landmarks.assess(spine, unanchored="accept", ct=scan, ruling=ruling)
        region = roi.locate(spine, assessment, spec or RoiSpec(), scan.source)
    image = _cut_ct(scan, region, window)
    labels, inside = _cut_mask(mask, region) if mask else (None, None)
    record = {
        "case_id": name,
        **roi.to_json(region, containment=inside, hu=window),
        **terms(assessment, words),
        "mask": "given" if mask else "absent",
    }
    report = CropReport(
        case_id=name,
        ct=ct_path,
        mask=mask_path if mask else None,
        roi=roi_path,
        record=record,
    )
    _write(report, image, labels, mask_path)
    return report


def paste_file(crop: Path, roi_json: Path, output: Path) -> None:
    """Write a crop's voxels back on the scan's delivered grid, 0 outside, dtype and values kept.

    Raises:
        InputError: `bad_roi`, or an unreadable crop.
        GeometryError: the crop does not lie on the region.
    """
    target = checked_output(output, crop, roi_json)
    region = _read_record(roi_json)
    volume = nifti.read(crop)
    require_same_grid(
        region.crop_grid, volume.grid, what="crop", file=crop, reference_name=f"the region of {roi_json.name}"
    )
    nifti.write(target, roi.paste(volume.array, region), region.source)


def acceptance(words: Words | None) -> landmarks.Ruling | None:
    """A person's word that landmarks count as labelled; None for none. Raises `UserError` as `complete`."""
    return landmarks.Ruling(**vars(words.complete()), accepted=True) if words else None


def terms(assessment: landmarks.Assessment, words: Words | None) -> dict[str, Any]:
    """What a record says of the landmarks that a region rests on, beside the region."""
    return {
        "findings": list(assessment.findings),
        "confidence": assessment.confidence,
        "truncated": [level.value for level in assessment.truncated],
        "anchored": assessment.anchored,
        "tissue_hu": assessment.tissue_hu.record(),
        "accepted": vars(words.complete()) if words else None,
    }


def _cut_ct(scan: Volume, region: roi.Roi, window: Hu | None) -> Volume:
    crop = scan.crop(region.box)
    array = intensity.scale(crop.array, window) if window else crop.array.copy(order="F")
    return crop.with_array(array)


def _cut_mask(mask: Path, region: roi.Roi) -> tuple[Volume, roi.Containment]:
    volume = nifti.read_labels(mask)
    require_same_grid(region.grid, volume.grid, what="node mask", file=mask)
    crop = volume.crop(region.box)
    return crop.with_array(crop.array.copy(order="F")), roi.containment(volume, region.box)


def _write(report: CropReport, image: Volume, labels: Volume | None, mask_path: Path) -> None:
    """All of it or nothing: what is there is touched when the rest is written.

    The record comes last: where it stands, the crop is complete.
    """
    with ExitStack() as swapped_in:  # the last one first
        record = swapped_in.enter_context(atomic_path(report.roi))
        if labels is not None:
            nifti.write(swapped_in.enter_context(atomic_path(mask_path)), labels.array, labels.grid)
        nifti.write(swapped_in.enter_context(atomic_path(report.ct)), image.array, image.grid)
        write_json(record, report.record)
        if report.roi.exists():  # an earlier crop's; a mask without a record beside it is somebody's own
            report.roi.unlink()
            if labels is None:
                mask_path.unlink(missing_ok=True)


def _checked_id(case_id: str) -> str:
    if not is_case_id(case_id):
        raise UserError(
            "case id cannot name a file",
            expected="letters, digits, dot, dash and underscore, not starting with a sign",
            got=repr(case_id),
            fix="pass --case-id",
        )
    return case_id


def checked_output(output: Path, *inputs: Path) -> Path:
    """The place of a NIfTI file that will be written, looked at before the work.

    Raises:
        UserError: the name has no extension of NIfTI, or it is one of the `inputs`.
        OSError: as `retroln.files.require_writable`.
    """
    if not has_ending(output.name, *NIFTI):
        raise UserError(
            "output name has no NIfTI extension", expected=".nii or .nii.gz", got=output.name, fix="rename it"
        )
    require_no_input(output, *inputs)
    require_writable(output)
    return output


def _read_record(path: Path) -> roi.Roi:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError("no such file", file=path, fix="check the path") from error
    except ValueError as error:
        raise InputError(
            "not JSON",
            reason="bad_roi",
            file=path,
            expected="the record of a crop",
            got=str(error),
            fix=_RECORD,
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            "not a region record",
            reason="bad_roi",
            file=path,
            expected="an object",
            got=type(content).__name__,
            fix=_RECORD,
        )
    with naming(path):
        return roi.from_json(content)
