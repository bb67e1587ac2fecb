"""A series' headers without the patient: one record per object, to refer to the series later.

Values are rebuilt from numbers, words of the standard and keyed hashes; no free text passes. Which attributes
stay, and by which rule of the standard, is in `kept`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from math import isfinite
from typing import Any

from retroln.imaging.dicom.choice import Choice
from retroln.imaging.dicom.headers import ENHANCED, Instance, own_words
from retroln.imaging.dicom.kept import KEPT, TERMS, How, Kept
from retroln.imaging.dicom.planes import Plane, kernel, planes_of, thickness_mm
from retroln.imaging.dicom.study import Series, Study
from retroln.pseudonyms import Pseudonyms

FORMAT = 1
"""Of the content of `series.json`."""

_CONSTANTS = {"Modality": "CT", "PhotometricInterpretation": "MONOCHROME2"}
_KERNEL = re.compile(
    r"(?:B|I|J|H|Br|Bv|Bf|Bl|Hr|Hc|Hv|Qr|Qf)\d{2}[a-z]{0,2}|FC\d{2}|[A-EL]|Y[A-D]"
    r"|STANDARD|STND|SOFT|DETAIL|LUNG|BONE(?:PLUS)?|EDGE|CHST"
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_AGENT = "CONTRAST"
_NAME_ENDS = {"PatientName": "^", "PatientID": ""}  # a name of one component says so (PS3.5 6.2)
_METHOD = "PS3.15 2024b basic profile, modified dates, keep-list"
_METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)


@dataclass(frozen=True)
class KnownAs:
    """Who the patient is here: the key, and the pseudonym that stands for name and id."""

    pseudonyms: Pseudonyms
    patient_id: str


def series_record(study: Study, series: Series, choice: Choice, known_as: KnownAs) -> dict[str, Any]:
    """The content of `series.json`: how the series was chosen, and its objects without the patient.

    Raises:
        InputError: `not_dicom`, a value that DICOM's JSON cannot say.

    Returns:
        `instances` holds a data set per object in DICOM's JSON model (PS3.18 F), in the order of the slices.
        `frames` says for each slice of the delivered grid which of these objects holds it, as which frame.
    """
    made = series.require_usable()
    paths = list(dict.fromkeys(plane.path for plane in made.planes))
    by_path = {instance.path: instance for instance in series.instances}
    place = {path: number for number, path in enumerate(paths)}
    first = by_path[paths[0]]
    with own_words(first.path):
        records = [_record(by_path[path], first, known_as) for path in paths]
    return {
        "format": FORMAT,
        "instances": records,
        "frames": [[place[plane.path], plane.frame] for plane in made.planes],
        "chosen": {"series": series.number, "why": choice.why},
        "not_chosen": [
            {"series": one.number, "why": choice.rejected.get(one.uid, "")}
            for one in study.series
            if one is not series
        ],
        "remarks": [*study.remarks, *series.remarks],
    }


def _record(instance: Instance, first: Instance, known_as: KnownAs) -> dict[str, Any]:
    """One object's data set as JSON; `first` is the series' first object."""
    from pydicom.dataset import Dataset

    found = Dataset()
    for kept in KEPT:
        value = _WAYS[kept.how](kept, instance, first, known_as)
        if value is not None:
            setattr(found, kept.keyword, value)
    if instance.sop_class in ENHANCED:
        _add_frames(found, instance)
    found.PatientIdentityRemoved = "YES"
    found.LongitudinalTemporalInformationModified = "MODIFIED"
    found.DeidentificationMethod = _METHOD
    found.DeidentificationMethodCodeSequence = [_code(*method) for method in _METHODS]
    content: dict[str, Any] = found.to_json_dict()
    return content


def _code(value: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _uid(kept: Kept, instance: Instance, first: Instance, known_as: KnownAs) -> str | None:
    """The keyed UID; one that is missing and needed is made from the series' first object."""
    known = instance.uid if kept.keyword == "SOPInstanceUID" else instance.text(kept.keyword)
    if not known and kept.keyword == "FrameOfReferenceUID":
        return None
    return known_as.pseudonyms.uid(known or f"{kept.keyword} beside {first.uid}")


def _date(kept: Kept, instance: Instance, first: Instance, known_as: KnownAs) -> str | None:
    """The date, earlier by the patient's days; what is no date is gone."""
    gone = None if kept.profile.startswith("X") else ""
    text = instance.text(kept.keyword)
    if not re.fullmatch(r"\d{8}", text):
        return gone
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:]))
        shifted = day - timedelta(days=known_as.pseudonyms.shift_days(known_as.patient_id))
    except (ValueError, OverflowError):
        return gone
    return f"{shifted.year:04d}{shifted.month:02d}{shifted.day:02d}"


def _term(kept: Kept, instance: Instance, first: Instance, known_as: KnownAs) -> Any:
    """Only values that the standard defines."""
    values = (instance.sop_class,) if kept.keyword == "SOPClassUID" else instance.texts(kept.keyword)
    known = [value for value in values if value in TERMS[kept.keyword]]
    return (known if len(known) > 1 else known[0]) if known else None


def _kernel(kept: Kept, instance: Instance, first: Instance, known_as: KnownAs) -> str | None:
    name = kernel(instance)
    return name if _KERNEL.fullmatch(name) else None


def _number(kept: Kept, instance: Instance, first: Instance, known_as: KnownAs) -> Any:
    """Numbers as they are written, so that none is rounded; nothing that is not a number."""
    from pydicom.datadict import dictionary_VR

    values = instance.texts(kept.keyword)
    if not values or not all(_NUMBER.fullmatch(value) and isfinite(float(value)) for value in values):
        return None
    if dictionary_VR(kept.keyword) == "DS":
        return list(values) if len(values) > 1 else values[0]
    return int(float(values[0])) if len(values) == 1 and float(values[0]).is_integer() else None


def _add_frames(found: Any, instance: Instance) -> None:
    """Functional groups with nothing but the geometry and the rescale of each frame."""
    planes = planes_of(instance)
    found.SharedFunctionalGroupsSequence = [_shared_group(planes[0], thickness_mm(instance))]
    found.PerFrameFunctionalGroupsSequence = [_frame_group(plane) for plane in planes]


def _shared_group(plane: Plane, thickness: float | None) -> Any:
    measures = {"PixelSpacing": list(plane.spacing_mm)}
    if thickness is not None:
        measures["SliceThickness"] = [thickness]
    return _nested(
        PixelMeasuresSequence=measures,
        PlaneOrientationSequence={"ImageOrientationPatient": list(plane.directions)},
    )


def _frame_group(plane: Plane) -> Any:
    return _nested(
        PlanePositionSequence={"ImagePositionPatient": list(plane.position_mm)},
        PixelValueTransformationSequence={
            "RescaleSlope": [plane.slope],
            "RescaleIntercept": [plane.intercept],
        },
    )


def _nested(**sequences: dict[str, list[float]]) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    outer = Dataset()
    for name, values in sequences.items():
        item = Dataset()
        for keyword, numbers in values.items():
            written = [format_number_as_ds(number) for number in numbers]
            setattr(item, keyword, written if len(written) > 1 else written[0])
        setattr(outer, name, [item])
    return outer


_WAYS: dict[How, Callable[[Kept, Instance, Instance, KnownAs], Any]] = {
    "uid": _uid,
    "date": _date,
    "patient": lambda kept, instance, first, known_as: known_as.patient_id + _NAME_ENDS[kept.keyword],
    "empty": lambda kept, instance, first, known_as: "",
    "flag": lambda kept, instance, first, known_as: _AGENT if instance.text(kept.keyword) else "",
    "term": _term,
    "kernel": _kernel,
    "number": _number,
    "constant": lambda kept, instance, first, known_as: _CONSTANTS[kept.keyword],
}
