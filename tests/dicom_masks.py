"""DICOM masks with known answers: segmentations by highdicom, structure sets by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from retroln.imaging.geometry import Grid
from tests.dicom_series import UIDS, Made


def segmentation(
    slices: Sequence[Dataset],
    labels: NDArray[np.uint8],
    names: Sequence[str] = ("Lymph node",),
    *,
    kind: str = "BINARY",
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> Dataset:
    """A SEG of labels 1..n (axes column, row, slice) over a series, frames without a voxel left out."""
    import highdicom as hd

    node = hd.sr.CodedConcept("59441001", "SCT", "Structure of lymph node")
    category = hd.sr.CodedConcept("91723000", "SCT", "Anatomical structure")
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=category,
            segmented_property_type=node if "node" in name else hd.sr.CodedConcept("1", "99TEST", "other"),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names, start=1)
    ]
    pixels = labels.transpose(2, 1, 0)
    if kind == "FRACTIONAL":
        pixels = (pixels > 0).astype(np.float32) * 0.9
    made = hd.seg.Segmentation(
        source_images=list(slices),
        pixel_array=np.ascontiguousarray(pixels),
        segmentation_type=hd.seg.SegmentationTypeValues[kind],
        segment_descriptions=descriptions,
        series_instance_uid=f"{UIDS}9.1",
        series_number=99,
        sop_instance_uid=f"{UIDS}9.2",
        instance_number=1,
        manufacturer="tests",
        manufacturer_model_name="tests",
        software_versions="0",
        device_serial_number="0",
    )
    if transfer_syntax != ExplicitVRLittleEndian:  # highdicom takes GDCM's RLE encoder, which aborts
        made.compress(transfer_syntax, encoding_plugin="pydicom", generate_instance_uid=False)
    return made


def structure_set(
    rois: Sequence[tuple[str, Sequence[NDArray[np.float64]]]],
    grid: Grid,
    made: Made | None = None,
    *,
    geometric_type: str = "CLOSED_PLANAR",
) -> Dataset:
    """An RTSTRUCT of (name, polygons); a polygon's vertices are voxel indices (n, 3) on `grid`."""
    made = made or Made()
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = RTStructureSetStorage, f"{UIDS}8.1"
    one.Modality, one.PatientName, one.PatientID = "RTSTRUCT", "", made.patient_id
    one.StructureSetROISequence = [
        _item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=made.frame_of_reference)
        for number, (name, _) in enumerate(rois, start=1)
    ]
    one.ROIContourSequence = [
        _item(
            ReferencedROINumber=number,
            ContourSequence=[_contour(polygon, grid, geometric_type) for polygon in polygons],
        )
        for number, (_, polygons) in enumerate(rois, start=1)
    ]
    series = _item(SeriesInstanceUID=made.series_uid)
    study = _item(RTReferencedSeriesSequence=[series])
    one.ReferencedFrameOfReferenceSequence = [
        _item(FrameOfReferenceUID=made.frame_of_reference, RTReferencedStudySequence=[study])
    ]
    one.file_meta = FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return one


def rectangle(i: tuple[float, float], j: tuple[float, float], k: float) -> NDArray[np.float64]:
    """Corners in voxel indices; from 2.5 to 5.5 are the centres 3, 4, 5."""
    (left, right), (front, back) = i, j
    return np.array([[left, front, k], [right, front, k], [right, back, k], [left, back, k]], float)


def _contour(polygon: NDArray[np.float64], grid: Grid, geometric_type: str) -> Dataset:
    points = grid.world_mm(polygon) * (-1.0, -1.0, 1.0)
    return _item(
        ContourGeometricType=geometric_type,
        NumberOfContourPoints=len(points),
        ContourData=[f"{value:.6f}" for value in points.ravel()],
    )


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
