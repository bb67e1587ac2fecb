"""DICOM made of arrays with known answers: plain and enhanced CT, in every encoding that RetroLN reads."""

from __future__ import annotations

import zipfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pydicom.valuerep import format_number_as_ds

from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume

KEY = "stand-in key of the tests, not secret"
UIDS = "1.2.826.0.1.3680043.8.498."
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
LOSSLESS = (*PLAIN, RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
LOSSY = (JPEGLSNearLossless, JPEG2000)
_GDCM = {
    JPEGLossless: "JPEGLosslessProcess14",
    JPEGLosslessSV1: "JPEGLosslessProcess14_1",
    JPEG2000Lossless: "JPEG2000Lossless",
    JPEG2000: "JPEG2000",
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """How a series is written; every field is one thing that a scanner decides.

    Attributes:
        stored: type of the stored values.
        slope, intercept: HU is stored x slope + intercept.
        study: number in the StudyInstanceUID, and in the frame of reference.
    """

    number: int = 3
    study: int = 1
    patient_id: str = "MRN 4711"
    transfer_syntax: str = ExplicitVRLittleEndian
    stored: str = "<u2"
    bits: int = 16
    slope: float = 1.0
    intercept: float = -1024.0
    kernel: str = "Br36f"
    thickness_mm: float = 2.0
    description: str = "Abdomen portal venous"
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")

    @property
    def series_uid(self) -> str:
        return f"{UIDS}2.{self.study}.{self.number}"

    @property
    def frame_of_reference(self) -> str:
        return f"{UIDS}4.{self.study}"


def ct_array(shape: tuple[int, int, int] = (24, 20, 12), seed: int = 5) -> NDArray[np.int16]:
    """Air, a body of soft tissue, bone and noise; different in every direction."""
    rng = np.random.default_rng(seed)
    array = rng.integers(-20, 20, shape).astype(np.int16) - 1000
    i, j, k = shape
    array[3 : i - 4, 2 : j - 5, :] += 1040
    array[i // 2 : i // 2 + 4, 4:7, 1 : k - 2] += 600
    return array


def lps_grid(
    shape: tuple[int, int, int] = (24, 20, 12),
    spacing_mm: tuple[float, float, float] = (0.8, 0.9, 2.0),
    origin_mm: tuple[float, float, float] = (100.0, 150.0, -300.0),
    rotation: NDArray[np.float64] | None = None,
) -> Grid:
    """Grid of an axial series: array axes point left, to the back and up, turned by `rotation`."""
    affine = np.eye(4)
    turn = np.eye(3) if rotation is None else rotation
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) * np.array(spacing_mm)
    affine[:3, 3] = origin_mm
    return Grid(shape, affine)


def rotated(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """Rotation about x, then y, then z."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix())


def series(array: NDArray[Any], grid: Grid, made: Made | None = None) -> list[Dataset]:
    """One data set per slice of an array in HU with axes (column, row, slice) on `grid`, uncompressed."""
    made = made or Made()
    return [_slice(array[:, :, k], grid, k, made) for k in range(grid.shape[2])]


def of_volume(volume: Volume, made: Made | None = None) -> list[Dataset]:
    """A series of a volume whose source grid has axial slices, as a phantom's."""
    return series(volume.to_source(), volume.source, made)


def write(folder: Path, datasets: list[Dataset], *, names: str = "IM{:04d}.dcm", seed: int = 0) -> list[Path]:
    """Write the data sets, encoded as each says, under names in an order of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(datasets))
    paths = [folder / names.format(int(number)) for number in order]
    for path, dataset in zip(paths, datasets, strict=True):
        save(path, dataset)
    return paths


def save(path: Path, dataset: Dataset) -> None:
    """Write one data set, encoded by its transfer syntax."""
    wanted = dataset.file_meta.TransferSyntaxUID
    dataset = deepcopy(dataset)
    if wanted in (RLELossless, JPEGLSLossless, JPEGLSNearLossless):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        plugin = "pydicom" if wanted == RLELossless else "pyjpegls"
        options = {"jls_error": 1} if wanted == JPEGLSNearLossless else {}
        dataset.compress(wanted, encoding_plugin=plugin, generate_instance_uid=False, **options)
    elif wanted in _GDCM:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    elif wanted == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    if wanted in _GDCM:
        _encode_by_gdcm(path, _GDCM[wanted])


def set_patient_id(path: Path, raw: bytes) -> None:
    """Put these bytes, padded, in the place of PatientID in an explicit little-endian file."""
    data, value = path.read_bytes(), raw + b" " * (len(raw) % 2)
    at = data.index(b"\x10\x00\x20\x00LO") + 6
    end = at + 2 + int.from_bytes(data[at : at + 2], "little")
    path.write_bytes(data[:at] + len(value).to_bytes(2, "little") + value + data[end:])


def zipped(folder: Path, path: Path) -> None:
    """Pack a folder's files, below a folder of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, f"EXPORT/{file.relative_to(folder)}")


def enhanced(array: NDArray[Any], grid: Grid, made: Made | None = None) -> Dataset:
    """The same as one multi-frame object, its frames from head to feet."""
    made = made or Made()
    slices = series(array, grid, made)[::-1]
    one = deepcopy(slices[0])
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    one.NumberOfFrames = len(slices)
    one.PixelData = b"".join(each.PixelData for each in slices)
    shared = _group(
        PixelMeasuresSequence=("PixelSpacing", "SliceThickness"),
        PlaneOrientationSequence=("ImageOrientationPatient",),
    )
    frame = _group(
        PlanePositionSequence=("ImagePositionPatient",),
        PixelValueTransformationSequence=("RescaleSlope", "RescaleIntercept", "RescaleType"),
        CTReconstructionSequence=("ConvolutionKernel",),
    )
    one.SharedFunctionalGroupsSequence = [shared(slices[0])]
    one.PerFrameFunctionalGroupsSequence = [frame(each) for each in slices]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(one, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ConvolutionKernel"):
        delattr(one, keyword)
    return one


def _slice(values: NDArray[Any], grid: Grid, k: int, made: Made) -> Dataset:
    one = Dataset()
    one.SpecificCharacterSet = "ISO_IR 192"
    one.SOPClassUID = CTImageStorage
    one.SOPInstanceUID = f"{UIDS}3.{made.study}.{made.number}.{k + 1}"
    one.StudyInstanceUID = f"{UIDS}1.{made.study}"
    one.SeriesInstanceUID = made.series_uid
    one.FrameOfReferenceUID = made.frame_of_reference
    one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "", made.patient_id, "", ""
    one.StudyDate = one.SeriesDate = one.AcquisitionDate = one.ContentDate = "20240229"
    one.StudyTime, one.AcquisitionTime = "101500", "102000"
    one.AccessionNumber, one.StudyID, one.ReferringPhysicianName = "", "", ""
    one.Modality, one.ImageType = "CT", list(made.image_type)
    one.SeriesDescription, one.ProtocolName, one.BodyPartExamined = made.description, "", "ABDOMEN"
    one.SeriesNumber, one.InstanceNumber = made.number, grid.shape[2] - k
    one.ConvolutionKernel, one.KVP, one.PatientPosition = made.kernel, "120", "HFS"
    one.ContrastBolusAgent = "agent of the tests"
    _place(one, grid, k, made)
    _fill(one, values, made)
    one.file_meta = FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    one.file_meta.TransferSyntaxUID = made.transfer_syntax
    return one


def _place(one: Dataset, grid: Grid, k: int, made: Made) -> None:
    to_lps = np.array([-1.0, -1.0, 1.0])
    across, down = (grid.affine[:3, axis] * to_lps for axis in (0, 1))
    one.ImagePositionPatient = _decimals(grid.world_mm(np.array([0, 0, k])) * to_lps)
    one.ImageOrientationPatient = _decimals(
        np.concatenate([across / np.linalg.norm(across), down / np.linalg.norm(down)])
    )
    one.PixelSpacing = _decimals(np.array([np.linalg.norm(down), np.linalg.norm(across)]))
    one.SliceThickness = str(made.thickness_mm)


def _fill(one: Dataset, values: NDArray[Any], made: Made) -> None:
    stored = np.rint((values.T - made.intercept) / made.slope).astype(made.stored)
    one.Rows, one.Columns = stored.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, made.bits, made.bits - 1
    one.PixelRepresentation = int(np.dtype(made.stored).kind == "i")
    one.RescaleSlope, one.RescaleIntercept = _decimals(np.array([made.slope, made.intercept]))
    one.RescaleType = "HU"
    one.PixelData = stored.tobytes()
    one["PixelData"].VR = "OW"


def _decimals(values: NDArray[np.float64]) -> list[str]:
    return [format_number_as_ds(float(value)) for value in values]


def _group(**sequences: tuple[str, ...]) -> Any:
    """A maker of functional groups: the named attributes of a slice, moved into sequences."""

    def make(source: Dataset) -> Dataset:
        outer = Dataset()
        for name, keywords in sequences.items():
            item = Dataset()
            for keyword in keywords:
                item.add(source[keyword])
            setattr(outer, name, [item])
        return outer

    return make


def _encode_by_gdcm(path: Path, name: str) -> None:
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()
