"""What a series is for the rule of choice: sharpness of its kernel, phase, orientation, coverage.

Vendors name kernels each in a way of their own, and no attribute says the phase reliably. What is read from
free text here decides at ingest and is not stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from retroln.imaging.dicom.choice import Orientation, Phase, SeriesFacts, Sharpness
from retroln.imaging.dicom.headers import Instance
from retroln.imaging.dicom.planes import Plane, kernel, thickness_mm
from retroln.imaging.dicom.stack import Stack

# Siemens: family and a number that grows with sharpness (B30f, I41f, Br38f, Qr40); Canon: FC and a group of
# tens, of which 00-19 are for soft tissue of the body; Philips: single letters; GE: words.
_SIEMENS = re.compile(r"(?:B|I|J|H|BR|BV|BF|BL|HR|HC|HV|QR|QF)(\d{2})[A-Z]{0,2}\d?")
_SIEMENS_SHARPEST_SOFT = 46
_CANON = re.compile(r"FC(\d{2})")
_CANON_SHARPEST_SOFT = 19
_SOFT = frozenset({"STANDARD", "STND", "SOFT", "SOFTTISSUE", "DETAIL", "A", "B", "C", "UB"})
_SHARP = frozenset(
    {"LUNG", "BONE", "BONEPLUS", "BONE+", "EDGE", "ULTRA", "CHST", "D", "E", "L", "YA", "YB", "YC", "YD"}
)
_HEAD = {"HEAD", "BRAIN", "SKULL", "NECK", "CSPINE", "HEADNECK", "IAC", "ORBIT", "SINUS"}
_LIMBS = {"SHOULDER", "ARM", "ELBOW", "HAND", "WRIST", "LEG", "KNEE", "ANKLE", "FOOT"}
_PLAIN = re.compile(r"nativ|unenhanced|pre.?contrast|non.?contrast|without|\bplain\b|w/o|ohne", re.I)
_PORTAL = re.compile(r"portal|ven(?:ous|oes|ös|a)|\bvenen?|\bpvp?\b", re.I)
_OTHER_PHASE = re.compile(r"arter|\bart\b|late|delay|sp[aä]t|excret|nephro|urogr", re.I)
_PORTAL_DELAY_S = (55.0, 100.0)  # after the injection began; abdominal protocols image at 60 to 80 s


def describe(instances: Sequence[Instance], made: Stack) -> SeriesFacts:
    """The facts of one stacked series."""
    first = instances[0]
    spacing_mm = made.grid.spacing_mm[2]
    return SeriesFacts(
        key=first.series_uid,
        number=first.whole("SeriesNumber"),
        orientation=orientation_of(made.planes[0]),
        sharpness=sharpness_of(kernel(first)),
        phase=phase_of(first),
        spacing_mm=spacing_mm,
        thickness_mm=thickness_mm(first) or spacing_mm,
        coverage_mm=_coverage_mm(first, made),
        is_original="ORIGINAL" in first.image_type[:1],
        slices=len(made.planes),
    )


def sharpness_of(name: str) -> Sharpness:
    """Of a convolution kernel by its vendor's way of naming."""
    name = name.upper().replace(" ", "").replace("_", "")
    if name in _SOFT or name in _SHARP:
        return "soft" if name in _SOFT else "sharp"
    for pattern, limit in ((_SIEMENS, _SIEMENS_SHARPEST_SOFT), (_CANON, _CANON_SHARPEST_SOFT)):
        if found := pattern.fullmatch(name):
            return "soft" if int(found[1]) <= limit else "sharp"
    return "unknown"


def phase_of(instance: Instance) -> Phase:
    """By the series' and protocol's words first, then by the delay after the injection, then by the agent."""
    words = f"{instance.text('SeriesDescription')} {instance.text('ProtocolName')}"
    if _PLAIN.search(words):
        return "plain"
    if _PORTAL.search(words):
        return "portal_venous"
    if _OTHER_PHASE.search(words):
        return "contrast"
    delay_s = _delay_s(instance)
    if delay_s is not None and _PORTAL_DELAY_S[0] <= delay_s <= _PORTAL_DELAY_S[1]:
        return "portal_venous"
    return "contrast" if instance.text("ContrastBolusAgent") else "unknown"


def orientation_of(plane: Plane) -> Orientation:
    """The anatomical plane closest to a slice."""
    normal = np.cross(plane.directions[:3], plane.directions[3:])
    planes: tuple[Orientation, Orientation, Orientation] = ("sagittal", "coronal", "axial")
    return planes[int(np.argmax(np.abs(normal)))]


def _coverage_mm(instance: Instance, made: Stack) -> float:
    """Extent from feet to head, mm; 0 for parts of the body that hold no lumbar spine."""
    if instance.text("BodyPartExamined").upper().replace(" ", "") in _HEAD | _LIMBS:
        return 0.0
    return float(np.ptp(made.grid.corners_world_mm()[:, 2]))


def _delay_s(instance: Instance) -> float | None:
    start, scan = (_seconds(instance.text(name)) for name in ("ContrastBolusStartTime", "AcquisitionTime"))
    return None if start is None or scan is None else scan - start


def _seconds(time: str) -> float | None:
    """Of a DICOM time HHMMSS.FFFFFF since midnight."""
    found = re.fullmatch(r"(\d{2})(\d{2})(\d{2}(?:\.\d+)?)", time)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None
