"""The keep-list: which attributes of a series' headers stay, and what is done with each.

A keep-list, not a drop-list: an attribute that is not in `KEPT` is gone, private and nested ones included.
The actions are those of PS3.15 2024b Table E.1-1 for the Basic Application Level Confidentiality Profile with
the Retain Longitudinal Temporal Information With Modified Dates Option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retroln.imaging.dicom.headers import CT

How = Literal["uid", "date", "patient", "empty", "flag", "term", "kernel", "number", "constant"]


@dataclass(frozen=True)
class Kept:
    """One attribute that stays.

    Attributes:
        keyword: DICOM keyword.
        profile: action of the basic profile in Table E.1-1; "-" where the table does not list the attribute,
            which then may stay as it is.
        option: action of the modified-dates option, "" where it has none.
        how: what is done. uid: keyed hash; date: shifted by the patient's days; patient: the pseudonym;
            empty: no value; flag: a dummy says whether there was a value; term: one of the standard's words;
            kernel: a name as vendors form them; number: the number alone; constant: always the same.
    """

    keyword: str
    profile: str
    option: str
    how: How


KEPT = (
    Kept("SOPClassUID", "-", "", "term"),
    Kept("SOPInstanceUID", "U", "", "uid"),
    Kept("StudyInstanceUID", "U", "", "uid"),
    Kept("SeriesInstanceUID", "U", "", "uid"),
    Kept("FrameOfReferenceUID", "U", "", "uid"),
    Kept("StudyDate", "Z", "C", "date"),
    Kept("SeriesDate", "X/D", "C", "date"),
    Kept("AcquisitionDate", "X/Z", "C", "date"),
    Kept("ContentDate", "Z/D", "C", "date"),
    Kept("StudyTime", "Z", "C", "empty"),
    Kept("AccessionNumber", "Z", "", "empty"),
    Kept("StudyID", "Z", "", "empty"),
    Kept("ReferringPhysicianName", "Z", "", "empty"),
    Kept("PatientName", "Z", "", "patient"),
    Kept("PatientID", "Z/D", "", "patient"),
    Kept("PatientBirthDate", "Z", "", "empty"),
    Kept("PatientSex", "Z", "", "empty"),
    Kept("ContrastBolusAgent", "Z/D", "", "flag"),
    Kept("Modality", "-", "", "constant"),
    Kept("ImageType", "-", "", "term"),
    Kept("PatientPosition", "-", "", "term"),
    Kept("ConvolutionKernel", "-", "", "kernel"),
    Kept("KVP", "-", "", "number"),
    Kept("SliceThickness", "-", "", "number"),
    Kept("SeriesNumber", "-", "", "number"),
    Kept("InstanceNumber", "-", "", "number"),
    Kept("ImagePositionPatient", "-", "", "number"),
    Kept("ImageOrientationPatient", "-", "", "number"),
    Kept("PixelSpacing", "-", "", "number"),
    Kept("RescaleSlope", "-", "", "number"),
    Kept("RescaleIntercept", "-", "", "number"),
    Kept("SamplesPerPixel", "-", "", "number"),
    Kept("PhotometricInterpretation", "-", "", "constant"),
    Kept("Rows", "-", "", "number"),
    Kept("Columns", "-", "", "number"),
    Kept("BitsAllocated", "-", "", "number"),
    Kept("BitsStored", "-", "", "number"),
    Kept("HighBit", "-", "", "number"),
    Kept("PixelRepresentation", "-", "", "number"),
    Kept("NumberOfFrames", "-", "", "number"),
)
"""Zeroed attributes (StudyTime ... PatientSex) stay empty because objects that refer to these need them."""

TERMS = {
    "SOPClassUID": frozenset(CT),
    "ImageType": frozenset({"ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "VOLUME", "NONE"}),
    "PatientPosition": frozenset({"HFS", "HFP", "HFDL", "HFDR", "FFS", "FFP", "FFDL", "FFDR"}),
}
