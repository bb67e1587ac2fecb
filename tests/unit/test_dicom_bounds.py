"""What one DICOM file may make of a machine is known before pydicom reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from retroln.errors import InputError
from retroln.imaging.dicom import bounds
from retroln.imaging.dicom.headers import read_instance
from retroln.imaging.volume import LARGEST_BYTES, require_possible_size
from tests.dicom_series import Made, ct_array, lps_grid, save, series

_ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(tmp_path / "one.dcm", series(ct_array(), lps_grid())[0])
    return tmp_path / "one.dcm"


def _refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_instance(path)
    assert caught.value.reason == "too_large" and caught.value.file == path
    return str(caught.value.expected)


def test_a_file_may_be_half_the_largest_volume_and_its_header(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(bounds.LARGEST_FILE_BYTES + 1)  # sparse: it takes no room on the disk
    assert _refusal(path) == "at most 1088 MiB"
    assert bounds.LARGEST_FILE_BYTES + LARGEST_BYTES // 2 < 1.5 * LARGEST_BYTES


@pytest.mark.parametrize("most", [3, 4])
def test_items_are_counted_across_pieces(path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(bounds, "MOST_ITEMS", most)
    monkeypatch.setattr(bounds, "_CHUNK_BYTES", 5)
    path.write_bytes(
        path.read_bytes() + b"\xfc\xff\xfc\xff" + (4 * len(_ITEM)).to_bytes(4, "little") + 4 * _ITEM
    )
    if most < 4:
        assert _refusal(path) == "at most 3 items in sequences"
    else:
        bounds.require_bounded(path)


def test_a_deflated_object_is_inflated_up_to_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.dcm"
    made = Made(transfer_syntax=DeflatedExplicitVRLittleEndian)
    save(path, series(ct_array(), lps_grid(), made)[0])
    assert read_instance(path).whole("Rows") == 20
    monkeypatch.setattr(bounds, "LARGEST_INFLATED_BYTES", 500)
    assert _refusal(path) == "at most 500 bytes when it is inflated"
    monkeypatch.undo()
    monkeypatch.setattr(bounds, "MOST_INFLATED_RATIO", 1)
    assert _refusal(path).startswith(f"at most {path.stat().st_size} bytes")


def test_a_deflated_object_behind_commands_is_bounded_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pydicom passes over a command set between meta information and data set; so must the bound."""
    path = tmp_path / "one.dcm"
    save(path, series(ct_array(), lps_grid(), Made(transfer_syntax=DeflatedExplicitVRLittleEndian))[0])
    data = path.read_bytes()
    meta_end = 144 + int.from_bytes(data[140:144], "little")
    command = b"\0\0\x00\x01" + (2).to_bytes(4, "little") + b"\x01\0"
    path.write_bytes(data[:meta_end] + command + data[meta_end:])
    assert read_instance(path).whole("Rows") == 20
    monkeypatch.setattr(bounds, "LARGEST_INFLATED_BYTES", 500)
    assert _refusal(path) == "at most 500 bytes when it is inflated"


def test_a_deflated_object_that_ends_early_is_left_to_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    save(path, series(ct_array(), lps_grid(), Made(transfer_syntax=DeflatedExplicitVRLittleEndian))[0])
    path.write_bytes(path.read_bytes()[:-60])
    bounds.require_bounded(path)


@pytest.mark.parametrize("voxel_bytes", [1, 2, 4, 8])
def test_a_volume_may_take_two_gibibytes(voxel_bytes: int) -> None:
    most = (1024, 1024, 2048 // voxel_bytes)
    require_possible_size(most, voxel_bytes)
    with pytest.raises(InputError, match="at most 2 GiB of voxels") as caught:
        require_possible_size((*most[:2], most[2] + 1), voxel_bytes, "ct.nii.gz")
    assert caught.value.reason == "too_large" and caught.value.fix
