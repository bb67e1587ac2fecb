"""One DICOM file to one `Instance`: the attributes that are needed, read without the pixels.

A file is told by its content (DICM at byte 128, PS3.10 7.1), not by its name.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from retroln.errors import InputError, MissingExtraError, RetroLNError, install_from_checkout
from retroln.imaging.dicom.bounds import require_bounded
from retroln.pseudonyms import canonical, names_nobody

DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR: it lists files and is no object
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # second: legacy converted
CT = ("1.2.840.10008.5.1.4.1.1.2", *ENHANCED)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, .1 to .4

_MAGIC = b"DICM"
_MAGIC_AT = 128
_META_AT = _MAGIC_AT + len(_MAGIC)
_GROUP_LENGTH = b"\x02\x00\x00\x00UL"  # the first element of the meta information (PS3.10 7.1)
_EARLY_GROUPS = (b"\x02\x00", b"\x08\x00")  # meta information, identification; little endian
_LONGEST_VALUE = 1 << 20  # bytes; a contour of 40,000 points
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)  # DS and IS, PS3.5 6.2
_REPLACED = "\ufffd"  # what pydicom puts for a byte that it cannot decode
_NO_NUMBER = re.compile(r"[0Xx.\-_ ]+")
_NEEDED = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID PatientID
    Modality ImageType SeriesNumber InstanceNumber StudyDate SeriesDate AcquisitionDate ContentDate
    AcquisitionTime ContrastBolusStartTime ContrastBolusAgent SeriesDescription ProtocolName BodyPartExamined
    ConvolutionKernel KVP PatientPosition SliceThickness
    ImagePositionPatient ImageOrientationPatient PixelSpacing Rows Columns NumberOfFrames
    SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation
    PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept RescaleType
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    SeriesTime AcquisitionNumber AcquisitionUID AcquisitionDateTime ContentTime IrradiationEventUID
    ScanOptions AcquisitionType GantryDetectorTilt SpiralPitchFactor FilterType ConvolutionKernelGroup
    ReconstructionAlgorithm DataCollectionDiameter ReconstructionDiameter ContrastBolusAgentNumber
    TemporalPositionIdentifier TemporalPositionIndex
    NominalPercentageOfCardiacPhase NominalPercentageOfRespiratoryPhase
""".split()  # noqa: SIM905 - forty quoted words are no easier to read


@dataclass(frozen=True, eq=False)
class Instance:
    """One DICOM object as far as RetroLN looks at it.

    Attributes:
        path: the file.
        header: the attributes of `_NEEDED` that it has; holds what identifies the patient.
        sop_class, uid: the data set's, else the file meta information's.
        transfer_syntax: UID of the pixels' encoding.
        patient_id: PatientID as `patient_id` spells it, "" for none. Never stored.
    """

    path: Path
    header: Any = field(repr=False)
    sop_class: str
    uid: str = field(repr=False)
    transfer_syntax: str
    patient_id: str = field(default="", repr=False)

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID, "" for none."""
        return self.text("SeriesInstanceUID")

    @property
    def frame_of_reference(self) -> str:
        """FrameOfReferenceUID, "" for none."""
        return self.text("FrameOfReferenceUID")

    @cached_property
    def image_type(self) -> tuple[str, ...]:
        """Values of ImageType; an enhanced object's own stand at its top, too."""
        return tuple(value.upper() for value in self.texts("ImageType"))

    def text(self, keyword: str) -> str:
        """The value as text without surrounding blanks; the first of several, "" for none."""
        return next(iter(self.texts(keyword)), "")

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Every value as text."""
        return texts(self.header, keyword)

    def number(self, keyword: str) -> float | None:
        """The value as a number, None if it is missing, none, or one of several."""
        found = self.numbers(keyword)
        return found[0] if len(found) == 1 else None

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Every value as a number; empty if one of them is none."""
        return numbers(self.header, keyword)

    def whole(self, keyword: str) -> int | None:
        """The value as a whole number, None if it is missing or none."""
        found = self.number(keyword)
        return int(found) if found is not None and found == int(found) else None


def texts(header: Any, keyword: str) -> tuple[str, ...]:
    """Every value of an attribute as text without surrounding blanks; empty where it cannot be read.

    A value of more than 1 MiB is not read: pydicom makes an object of every number in it.
    """
    try:
        raw = header.get_item(keyword) if keyword in header else None
        unread = getattr(raw, "value", None)
        if isinstance(unread, bytes) and len(unread) > _LONGEST_VALUE:
            return ()
        value = header.get(keyword)
    except Exception:  # a value that breaks its own type is as good as none
        return ()
    if value is None or value == "":
        return ()
    several = value if isinstance(value, MutableSequence) else [value]
    return tuple(str(one).strip() for one in several)


def numbers(header: Any, keyword: str) -> tuple[float, ...]:
    """Every value of an attribute as a finite number; empty if one of them is none.

    Only what the standard calls a number is one: Python would read 0_8 as 8.
    """
    written = texts(header, keyword)
    if not all(_DECIMAL.fullmatch(one) for one in written):
        return ()
    found = tuple(float(one) for one in written)
    return found if all(abs(one) < float("inf") for one in found) else ()


def patient_id(header: Any) -> str:
    """PatientID in the one spelling under which ids are compared and pseudonyms made; "" for none.

    It is decoded as SpecificCharacterSet says, without the blanks and zeros that pad it (PS3.5 6.2), composed
    (`canonical`), and whole: a backslash stays in it. Where a byte cannot be decoded, or was replaced before,
    the bytes stand for themselves (each beyond ASCII as U+DC80 to U+DCFF), so that no two ids become one.
    Must be asked for before anything else reads the attribute: pydicom keeps no bytes of what it has decoded.
    """
    raw = header.get_item("PatientID") if "PatientID" in header else None
    written = getattr(raw, "value", None)
    text = "\\".join(texts(header, "PatientID"))
    if _REPLACED in text and isinstance(written, bytes):
        text = written.decode("ascii", "surrogateescape")
    return canonical(text.strip(" \0"))


def is_doubtful(patient_id: str) -> bool:
    """Whether nobody can say for sure which id a PatientID is: it does not decode, or is several values.

    The same patient may bear another id elsewhere, in the right character set or as one of the values.
    """
    return "\\" in patient_id or any("\udc80" <= letter <= "\udcff" for letter in patient_id)


def is_placeholder(patient_id: str) -> bool:
    """Whether a PatientID names nobody: "", a word such as ANONYMOUS, or nothing but zeros, X and marks."""
    return names_nobody(patient_id) or _NO_NUMBER.fullmatch(patient_id) is not None


def is_dicom(path: Path) -> bool:
    """Whether the file begins like one of DICOM's."""
    with path.open("rb") as stream:
        return stream.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def seems_dicom(path: Path) -> bool:
    """Whether the file is DICOM, or was before its first bytes were lost or changed."""
    with path.open("rb") as stream:
        head = stream.read(2 * _META_AT)
    if _MAGIC in head or head[_META_AT:].startswith(_GROUP_LENGTH):  # in: a byte may be lost or too many
        return True
    says_type, is_short = head[4:6].isalpha() and head[4:6].isupper(), head[6:8] == b"\0\0"
    return head[:2] in _EARLY_GROUPS and (says_type or is_short)


def read_instance(path: Path) -> Instance:
    """The header of a DICOM file.

    Raises:
        InputError: `not_dicom`, or `truncated` when it ends before what every object must have.
        MissingExtraError: pydicom is not installed.
    """
    if not is_dicom(path):
        raise _not_dicom(path)
    found = read_dataset(path, _NEEDED, pixels=False)
    meta = found.file_meta
    with quietly():  # pydicom reads a value when it is first asked for, and what it warns of, it quotes
        whose = patient_id(found)
        for keyword in _NEEDED:
            if not keyword.endswith("Sequence"):
                texts(found, keyword)
        instance = Instance(
            path=path,
            header=found,
            sop_class=(texts(found, "SOPClassUID") or texts(meta, "MediaStorageSOPClassUID") or ("",))[0],
            uid=(texts(found, "SOPInstanceUID") or texts(meta, "MediaStorageSOPInstanceUID") or ("",))[0],
            transfer_syntax=(texts(meta, "TransferSyntaxUID") or ("",))[0],
            patient_id=whose,
        )
    if instance.sop_class != DIRECTORY and _ends_before_its_pixels(instance):
        raise truncated(path, "nothing more before the image pixel module")
    if not instance.uid:
        raise _not_dicom(path, "an object without SOPInstanceUID")
    return instance


def _ends_before_its_pixels(instance: Instance) -> bool:
    """Whether an attribute that every CT has is missing, and everything behind it, too."""
    from pydicom.datadict import tag_for_keyword

    last = max(instance.header.keys(), default=0)
    must = ("Modality", "Rows") if instance.sop_class in CT else ("Modality",)
    return any(last < (tag_for_keyword(keyword) or 0) for keyword in must)


def read_dataset(path: Path, keywords: Sequence[str], *, pixels: bool = True) -> Any:
    """The named attributes of a file, with its pixel data or without.

    Raises:
        InputError: `truncated`, `too_large` (see `bounds`), or `not_dicom` for what pydicom cannot read.
    """
    pydicom = load_pydicom()
    tags: list[Any] = [*keywords, *(["PixelData"] if pixels else [])]
    with quietly() as said:
        try:
            require_bounded(path)
            found = pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=tags)
        except EOFError:
            raise truncated(path, "the end of the file within an element") from None
        except Exception as error:  # pydicom's words may quote values
            if is_no_fault_of_the_file(error):
                raise
            raise _not_dicom(path, type(error).__name__) from None
    if any("End of file" in str(warning.message) for warning in said):
        raise truncated(path, "the end of the file within the pixel data")
    return found


def load_pydicom() -> Any:
    """pydicom, imported when first needed.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise MissingExtraError("DICOM needs pydicom", fix=install_from_checkout("dicom")) from error
    return pydicom


@contextmanager
def quietly() -> Iterator[list[warnings.WarningMessage]]:
    """Collect pydicom's warnings instead of showing them: they quote attribute values."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield said
    finally:
        logger.setLevel(level)


def truncated(path: Path, got: str) -> InputError:
    """The error for a file that ends too early."""
    return InputError(
        "the file ends too early",
        reason="truncated",
        file=path,
        expected="a whole DICOM object",
        got=got,
        fix="copy or export the study again",
    )


def _not_dicom(path: Path, detail: str = "") -> InputError:
    return InputError(
        "not a DICOM file",
        reason="not_dicom",
        file=path,
        expected="DICOM Part 10, with DICM at byte 128",
        got=detail or f"{path.stat().st_size} bytes of something else",
        fix="export the study again as DICOM files",
    )


def is_no_fault_of_the_file(error: Exception) -> bool:
    """Whether an error is to be passed on: RetroLN's own, or of disk or memory.

    pydicom raises an OSError, too, where the file ends in a sequence; that one has no number.
    """
    return isinstance(error, RetroLNError | MemoryError) or (
        isinstance(error, OSError) and error.errno is not None
    )


@contextmanager
def own_words(path: Path) -> Iterator[None]:
    """Turn whatever pydicom or a codec raises in the block into an `InputError` without their words.

    Raises:
        InputError: `not_dicom`, naming the kind of error. Want of disk or memory is passed on.
    """
    try:
        with quietly():
            yield
    except Exception as error:
        if is_no_fault_of_the_file(error):
            raise
        raise _not_dicom(path, f"a header that breaks the standard ({type(error).__name__})") from None
