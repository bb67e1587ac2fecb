"""What cannot become a volume is refused, each with a reason of its own and without the patient's name."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from retroln.errors import GeometryError, InputError
from retroln.imaging.dicom import decoder, decoding
from retroln.imaging.dicom.study import open_study, pick
from retroln.settings import SeriesRule
from tests.dicom_series import Made, ct_array, lps_grid, series, write

Break = Callable[[list[Dataset]], list[Dataset] | None]


def _tilt(slices: list[Dataset]) -> None:
    angle = np.radians(12.0)
    for one in slices:
        one.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle))]


def _doubled(slices: list[Dataset]) -> list[Dataset]:
    again = series(ct_array(seed=9), lps_grid())
    for number, one in enumerate(again):
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    return slices + again


def _missing(slices: list[Dataset]) -> list[Dataset]:
    return slices[:4] + slices[6:]


def _uneven(slices: list[Dataset]) -> None:
    for one in slices[6:]:
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y, z + 0.7]


def _sideways(slices: list[Dataset]) -> None:
    x, y, z = map(float, slices[5].ImagePositionPatient)
    slices[5].ImagePositionPatient = [x + 3.0, y, z]


def _turned(slices: list[Dataset]) -> None:
    slices[3].ImageOrientationPatient = [0, 1, 0, -1, 0, 0]


def _smaller(slices: list[Dataset]) -> None:
    slices[3].Rows = 10
    slices[3].PixelData = slices[3].PixelData[: 10 * slices[3].Columns * 2]


def _finer(slices: list[Dataset]) -> None:
    slices[3].PixelSpacing = [0.5, 0.5]


def _each(keyword: str, value: object) -> Break:
    def change(slices: list[Dataset]) -> None:
        for one in slices:
            if value is None:
                delattr(one, keyword)
            else:
                setattr(one, keyword, value)

    return change


def _secondary_capture(slices: list[Dataset]) -> None:
    for one in slices:
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"


def _unknown_encoding(slices: list[Dataset]) -> None:
    for one in slices:
        one.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"


REFUSALS: dict[str, tuple[Break, str, str]] = {
    "tilted gantry": (_tilt, "gantry_tilt", "12.0 degrees"),
    "two phases in one series": (_doubled, "duplicate_positions", "12 too many of 24"),
    "lost slices": (_missing, "missing_slices", "2 missing in 1 gaps"),
    "uneven spacing": (_uneven, "varying_spacing", "2.00 to 2.70 mm"),
    "a shifted slice": (_sideways, "varying_spacing", "3.00 mm"),
    "another orientation": (_turned, "mixed_series", "orientations"),
    "another size": (_smaller, "mixed_series", "sizes"),
    "another pixel spacing": (_finer, "mixed_series", "pixel spacings"),
    "few slices": (lambda slices: slices[:9], "too_few_slices", "10 or more"),
    "MR": (_each("Modality", "MR"), "wrong_modality", "got: MR"),
    "secondary capture": (_secondary_capture, "secondary_capture", "picture"),
    "localizer": (_each("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer", "scout"),
    "no position": (_each("ImagePositionPatient", None), "no_geometry", "ImagePositionPatient"),
    "no orientation": (_each("ImageOrientationPatient", None), "no_geometry", "ImageOrientationPatient"),
    "no pixel spacing": (_each("PixelSpacing", None), "no_geometry", "PixelSpacing"),
    "skewed directions": (_each("ImageOrientationPatient", [1, 0, 0, 0.5, 0.8, 0]), "bad_affine", "product"),
    "no rescale": (_each("RescaleIntercept", None), "no_rescale", "intercept None"),
    "effective Z": (_each("RescaleType", "Z_EFF"), "not_hu", "RescaleType HU"),
    "colour": (_each("PhotometricInterpretation", "RGB"), "not_ct", "MONOCHROME2"),
    "an encoding without a decoder": (_unknown_encoding, "undecodable", "1.2.840.10008.1.2.4.201"),
}


def refusal(folder: Path) -> InputError:
    """Why nothing of a folder can be used."""
    with pytest.raises(InputError) as caught:
        pick(open_study(folder.iterdir()), SeriesRule())[0].volume()
    return caught.value


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    damage, reason, mentions = REFUSALS[name]
    slices = series(ct_array(), lps_grid(), Made(patient_id="SMITH", description="JOHN SMITH"))
    for one in slices:
        one.PatientName = "SMITH^JOHN"
    written = damage(slices) or slices
    if name == "an encoding without a decoder":
        written = _written_as_they_are(tmp_path, written)
    else:
        write(tmp_path, written)
    error = refusal(tmp_path)
    assert error.reason == reason
    assert mentions in str(error)
    assert all(part and part.strip() for part in (error.expected, error.got, error.fix))
    assert "SMITH" not in str(error).upper()
    assert isinstance(error, GeometryError) == (
        reason in ("gantry_tilt", "varying_spacing", "no_geometry", "bad_affine")
    )


def _written_as_they_are(folder: Path, slices: list[Dataset]) -> list[Dataset]:
    """Plain pixels under an encoding's name: only the name is looked at."""
    wanted = slices[0].file_meta.TransferSyntaxUID
    for one in slices:
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for path in write(folder, slices):
        data = path.read_bytes()
        padded = str(ExplicitVRLittleEndian).encode() + b"\0"
        head, tail = data.split(padded, 1)
        uid = wanted.encode() + b"\0" * (len(wanted) % 2)
        length = len(uid).to_bytes(2, "little")
        meta_length = int.from_bytes(head[140:144], "little") + len(uid) - len(padded)
        head = head[:140] + meta_length.to_bytes(4, "little") + head[144:-2] + length
        path.write_bytes(head + uid + tail)
    return slices


def test_a_slice_a_third_thicker_than_rounding_is_no_gap(tmp_path: Path) -> None:
    """Positions rounded to a tenth of a millimetre stay within the tolerance."""
    slices = series(ct_array(), lps_grid(spacing_mm=(0.8, 0.9, 1.25)))
    for one in slices:
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y, round(z, 1)]
    write(tmp_path, slices)
    (found,) = open_study(tmp_path.iterdir()).series
    assert found.problem is None


def test_a_whole_study_of_refused_series_says_the_most_telling(tmp_path: Path) -> None:
    scout = series(ct_array(), lps_grid(), Made(number=1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")))
    write(tmp_path, scout, names="scout{}")
    axial = series(ct_array(), lps_grid(), Made(number=2))
    _tilt(axial)
    write(tmp_path, axial, names="axial{}")
    error = refusal(tmp_path)
    assert error.reason == "gantry_tilt"
    assert "1 other series: localizer" in str(error)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("keep", [0, 140, 0.5, -400], ids=["empty", "meta", "half", "pixels"])
def test_a_cut_file_is_truncated(tmp_path: Path, syntax: str, keep: float) -> None:
    paths = write(
        tmp_path, series(ct_array((64, 64, 12)), lps_grid((64, 64, 12)), Made(transfer_syntax=syntax))
    )
    data = paths[4].read_bytes()
    cut = int(keep * len(data)) if 0 < keep < 1 else int(keep)
    paths[4].write_bytes(data[:cut])
    error = refusal(tmp_path)
    assert error.reason == "truncated"
    assert Path(str(error.file)).name == paths[4].name


def test_a_header_without_pixels_says_so(tmp_path: Path) -> None:
    slices = series(ct_array(), lps_grid())
    for one in slices:
        del one.PixelData
    write(tmp_path, slices)
    assert refusal(tmp_path).reason == "no_pixel_data"


def test_damaged_codestreams_are_undecodable(tmp_path: Path) -> None:
    for path in write(tmp_path, series(ct_array(), lps_grid(), Made(transfer_syntax=JPEG2000Lossless))):
        data = bytearray(path.read_bytes())
        start = data.index(b"\xff\x4f\xff\x51")  # SOC and SIZ of JPEG 2000
        data[start : start + 12] = bytes(12)
        path.write_bytes(bytes(data))
    assert refusal(tmp_path).reason == "undecodable"


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless])
def test_bytes_that_were_changed_end_no_process(tmp_path: Path, syntax: str) -> None:
    """Whatever a codec does about them (GDCM ends its process on some): a volume or a reason."""
    shape = (64, 48, 12)
    paths = write(tmp_path, series(ct_array(shape), lps_grid(shape), Made(transfer_syntax=syntax)))
    data = paths[0].read_bytes()
    start = data.index(b"\xe0\x7f\x10\x00") + 28  # behind the pixel data's offset table
    found = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        changed = bytearray(data)
        for place in rng.integers(start, len(data) - 8, rng.choice([1, 5, 20, 100])):
            changed[place] = rng.integers(256)
        paths[0].write_bytes(bytes(changed))
        try:
            open_study(paths).series[0].volume()
        except InputError as error:
            found.add(error.reason)
    assert found <= {"undecodable", "truncated", "not_dicom"}


@pytest.mark.parametrize("end", [signal.SIGABRT, signal.SIGSEGV])
def test_a_codec_that_ends_its_process_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    write(tmp_path, series(ct_array(), lps_grid(), Made(transfer_syntax=JPEG2000Lossless)))
    _instead_of_the_decoder(monkeypatch, f"import os; os.kill(os.getpid(), {int(end)})")
    error = refusal(tmp_path)
    assert error.reason == "undecodable" and end.name in str(error)


def test_a_codec_that_does_not_end_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, series(ct_array(), lps_grid(), Made(transfer_syntax=JPEG2000Lossless)))
    _instead_of_the_decoder(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr("retroln.imaging.dicom.apart._PATIENCE_S", 0.5)
    assert "came to no end" in str(refusal(tmp_path))


_GREEDY = """
from retroln.imaging.dicom import decoder
decoder.frames = lambda *_: (bytearray({mib} << 20) and None for _ in range(1))
decoder.main()
"""


def test_a_codec_that_takes_more_memory_than_a_slice_can_need_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path, series(ct_array(), lps_grid(), Made(transfer_syntax=JPEG2000Lossless)))
    with monkeypatch.context() as patch:
        _instead_of_the_decoder(patch, _GREEDY.format(mib=decoder.FRAME_SHARE * 32 + 16))
        error = refusal(tmp_path)
    assert error.reason == "undecodable" and error.file == paths[0].with_name("IM0000.dcm")
    assert error.got == "more than 768 MiB taken to decode it"
    assert open_study(paths).series[0].volume().grid.shape == ct_array().shape  # the next case


def test_the_bound_on_memory_leaves_room_for_what_a_slice_can_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that takes all but 16 MiB of it fails for another reason: it has no frame to send."""
    write(tmp_path, series(ct_array(), lps_grid(), Made(transfer_syntax=JPEG2000Lossless)))
    _instead_of_the_decoder(monkeypatch, _GREEDY.format(mib=decoder.FRAME_SHARE * 32 - 16))
    with pytest.raises(ChildProcessError):
        open_study(tmp_path.iterdir()).series[0].volume()


def test_want_of_memory_is_no_fault_of_the_fragments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path, *_) = write(tmp_path, series(ct_array(), lps_grid(), Made(transfer_syntax=JPEG2000Lossless)))

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pydicom.encaps.generate_frames", full)
    with pytest.raises(MemoryError):
        next(decoding.frames(path, [0], JPEG2000Lossless))


@pytest.mark.parametrize(
    ("program", "kind"), [("import os; os.kill(os.getpid(), 9)", MemoryError), ("1 / 0", ChildProcessError)]
)
def test_a_decoder_that_is_killed_or_has_a_bug_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[Exception]
) -> None:
    write(tmp_path, series(ct_array(), lps_grid(), Made(transfer_syntax=JPEG2000Lossless)))
    _instead_of_the_decoder(monkeypatch, program)
    with pytest.raises(kind):
        open_study(tmp_path.iterdir()).series[0].volume()


def _instead_of_the_decoder(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run a line of Python where the child would decode."""
    start = subprocess.Popen

    def other(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        assert command[-1] == "retroln.imaging.dicom.decoder"
        return start([command[0], "-c", program], **options)

    monkeypatch.setattr("retroln.imaging.dicom.apart.subprocess.Popen", other)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 400])
def test_no_dicom_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "IM1.dcm").write_bytes(content)
    assert refusal(tmp_path).reason == ("truncated" if not content else "not_dicom")


def test_a_dcm_that_is_none_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, series(ct_array(), lps_grid()))
    (tmp_path / "IM9999.dcm").write_bytes(b"not a slice")
    assert refusal(tmp_path).reason == "not_dicom"


def test_a_folder_of_other_files_is_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert refusal(tmp_path).reason == "not_dicom"


def test_broken_values_are_refused_without_their_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """pydicom quotes what it cannot read; nothing of that reaches a message or the terminal."""
    paths = write(tmp_path, series(ct_array(), lps_grid()))
    for path in paths:
        data = path.read_bytes()
        assert data.count(b"\x28\x00\x30\x00DS") == 1
        at = data.index(b"\x28\x00\x30\x00DS") + 8
        length = int.from_bytes(data[at - 2 : at], "little")
        path.write_bytes(data[:at] + b"SMITH".ljust(length)[:length] + data[at + length :])
    error = refusal(tmp_path)
    assert error.reason == "no_geometry"
    said = capfd.readouterr()
    assert "SMITH" not in f"{error}{said.out}{said.err}"
