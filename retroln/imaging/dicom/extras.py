"""What may lie in a study or a series without harm: left out, or taken as it is, and said in a remark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from retroln.endings import DICOM
from retroln.files import sha256_file
from retroln.imaging.dicom.headers import CT, SECONDARY_CAPTURE, Instance
from retroln.imaging.dicom.planes import Plane
from retroln.imaging.dicom.stack import MIN_SLICES

_NO_SLICE = (
    ".db", ".ini", ".inf", ".txt", ".md", ".log", ".lnk", ".xml", ".html", ".htm", ".css", ".js", ".json",
    ".csv", ".pdf", ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".exe", ".dll", ".bat", ".dicomdir",
)  # fmt: skip
_DIRECTORY = "dicomdir"
_STORED = "1.2.840.10008.5.1.4.1.1."
_BESIDE = (SECONDARY_CAPTURE, *(_STORED + kind for kind in ("11.", "66", "88.", "104.")))
"""Pictures, presentation states, raw data and segmentations, reports, documents: nothing of a volume."""


def ending(name: str) -> str:
    """The ending of a file's name if it says whether the file may be a slice, else "".

    The directory of a medium, which has none, is given `.dicomdir`.
    """
    if name.lower() == _DIRECTORY:
        return f".{_DIRECTORY}"
    suffix = PurePath(name).suffix.lower()
    return suffix if suffix == DICOM or suffix in _NO_SLICE else ""


def is_no_slice(name: str) -> bool:
    """Whether a file's name says that it is something else than a slice (Thumbs.db, a text, a DICOMDIR)."""
    return ending(name) in _NO_SLICE


def without_extras(instances: Sequence[Instance]) -> tuple[tuple[Instance, ...], tuple[str, ...]]:
    """A series without copies of its objects, scouts, reports and pictures, and a remark on each kind.

    A series of nothing else stays as it is.
    """
    once = _each_once(instances)
    beside = [instance for instance in once if instance.sop_class.startswith(_BESIDE)]
    scouts = [
        instance for instance in once if instance.sop_class in CT and "LOCALIZER" in instance.image_type
    ]
    kept = tuple(instance for instance in once if instance not in beside and instance not in scouts)
    if not kept:
        return tuple(instances), ()
    return kept, (
        *left_out("copies of objects, byte for byte", len(instances) - len(once)),
        *left_out("localizers (scouts) in the series", len(scouts)),
        *left_out("objects in the series that are no CT images", len(beside)),
    )


def oddities(instances: Sequence[Instance], planes: Iterable[Plane]) -> tuple[str, ...]:
    """Remarks on a series that is taken although its headers are odd."""
    remarks = []
    if has_own_frames_of_reference(instances):
        remarks.append("a FrameOfReferenceUID per object, taken for one: the slices lie on one even grid")
    if any(plane.is_padded_with_tissue for plane in planes):
        remarks.append("PixelPaddingValue is one that tissue has; it counts only around the image")
    return tuple(remarks)


def has_own_frames_of_reference(instances: Sequence[Instance]) -> bool:
    """Whether each of many objects has another FrameOfReferenceUID, as after a careless anonymising."""
    different = {instance.frame_of_reference for instance in instances}
    return len(instances) >= MIN_SLICES and len(different) == len(instances) and "" not in different


def left_out(what: str, count: int) -> tuple[str, ...]:
    """A remark on so many of a kind; none on none."""
    return (f"left out: {what}: {count}",) if count else ()


def _each_once(instances: Sequence[Instance]) -> list[Instance]:
    """The objects whose files differ, in the given order; only what shares its SOPInstanceUID is read."""
    often = Counter(instance.uid for instance in instances)
    once: dict[tuple[str, str], Instance] = {}
    for instance in instances:
        content = sha256_file(instance.path) if often[instance.uid] > 1 else ""
        once.setdefault((instance.uid, content), instance)
    return list(once.values())
