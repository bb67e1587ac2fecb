"""`retroln crop` and `retroln paste` on files: what they write, record and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner, Result
from spine import ORIENTATIONS, V2, grid_ras, reoriented, spine_labels

from retroln.anatomy.vertebrae import LEVEL_ORDER
from retroln.cli.files import crop, paste
from retroln.cli.measure import measure
from retroln.errors import GeometryError, InputError, LandmarkError, NotFoundError, UserError
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.imaging.volume import Volume
from retroln.settings import Hu
from retroln.steps.files import case_id_of, crop_files, paste_file
from retroln.steps.words import Words

_BOX = (slice(11, 49), slice(10, 57), slice(12, 75))


def _ct() -> np.ndarray[Any, Any]:
    values = np.random.default_rng(5).integers(-1024, 1500, (60, 60, 90))
    return np.asfortranarray(values.astype(np.int16))


def _nodes() -> np.ndarray[Any, Any]:
    nodes = np.zeros((60, 60, 90), np.uint16, order="F")
    nodes[30:33, 30:33, 40:42] = 1
    nodes[47:51, 30, 40] = 300
    return nodes


def _deliver(folder: Path, array: np.ndarray[Any, Any], name: str, orientation: str = "RAS") -> Path:
    volume = reoriented(Volume(array, grid_ras(), grid_ras()), orientation)
    nifti.write_source(folder / name, volume)
    return folder / name


def _case(folder: Path, orientation: str = "RAS") -> dict[str, Path]:
    return {
        "ct": _deliver(folder, _ct(), "LN_001_0000.nii.gz", orientation),
        "vertebrae": _deliver(folder, spine_labels(), "spine.nii.gz", orientation),
        "mask": _deliver(folder, _nodes(), "nodes.nii.gz", orientation),
    }


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("LN_001_0000.nii.gz", "LN_001"),
        ("LN_001.nii.gz", "LN_001"),
        ("5.nii", "5"),
        ("GROSS.NII.GZ", "GROSS"),
        ("a_0000_b.nii.gz", "a_0000_b"),
        ("p1.series.2.nii.gz", "p1.series.2"),
    ],
)
def test_case_id_is_the_whole_name(name: str, case_id: str) -> None:
    assert case_id_of(Path("some/folder_0000") / name) == case_id


def test_crop_holds_hu_labels_and_record(tmp_path: Path) -> None:
    report = crop_files(**_case(tmp_path, "PIR"), output_dir=tmp_path / "out", normalize=False)
    assert report.case_id == "LN_001"
    ct, mask = nib.load(tmp_path / "out/LN_001_ct.nii.gz"), nib.load(tmp_path / "out/LN_001_mask.nii.gz")
    assert ct.get_data_dtype() == np.int16
    assert mask.get_data_dtype() == np.uint16
    assert np.array_equal(np.asanyarray(ct.dataobj), _ct()[_BOX])
    assert np.array_equal(np.asanyarray(mask.dataobj), _nodes()[_BOX])
    expected = grid_ras().affine.copy()
    expected[:3, 3] = (-100 + 11 * 4, -50 + 10 * 4, 20 + 12 * 3)
    np.testing.assert_allclose(ct.affine, expected, atol=1e-4)
    np.testing.assert_allclose(mask.affine, expected, atol=1e-4)
    record = json.loads((tmp_path / "out/LN_001_roi.json").read_text())
    assert record == report.record
    assert record["box_voxel"] == {"start": [11, 10, 12], "stop": [49, 57, 75]}
    assert (record["rung"], record["mask"], record["hu_window"]) == ("l2", "given", None)
    assert record["source"]["orientation"] == "PIR"
    assert (record["containment"]["inside_voxels"], record["containment"]["total_voxels"]) == (20, 22)


def test_scaled_crop_is_float32_between_0_and_1(tmp_path: Path) -> None:
    report = crop_files(**_case(tmp_path), output_dir=tmp_path / "out", hu=Hu(low=-200, high=300))
    image = nib.load(report.ct)
    assert image.get_data_dtype() == np.float32
    expected = (np.clip(_ct()[_BOX].astype(float), -200, 300) + 200) / 500
    np.testing.assert_allclose(np.asanyarray(image.dataobj), expected, atol=1e-6)
    assert report.record["hu_window"] == [-200.0, 300.0]


def test_absent_mask_is_recorded_and_an_old_one_removed(tmp_path: Path) -> None:
    case = _case(tmp_path)
    crop_files(**case, output_dir=tmp_path / "out")
    del case["mask"]
    report = crop_files(**case, output_dir=tmp_path / "out")
    assert report.mask is None
    assert (report.record["mask"], report.record["containment"]) == ("absent", None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "LN_001_ct.nii.gz",
        "LN_001_roi.json",
    ]


def test_vertebrae_as_folder_give_the_same_crop(tmp_path: Path) -> None:
    case = _case(tmp_path)
    for level in LEVEL_ORDER:
        mask = (spine_labels() == V2[level]).astype(np.uint8)
        _deliver(tmp_path / "levels", mask, f"vertebrae_{level}.nii.gz", "LPS")
    one = crop_files(**case, output_dir=tmp_path / "one")
    other = crop_files(**{**case, "vertebrae": tmp_path / "levels"}, output_dir=tmp_path / "other")
    assert one.record == other.record
    assert one.ct.read_bytes() == other.ct.read_bytes()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_gives_the_same_crop_and_the_way_back(tmp_path: Path, orientation: str) -> None:
    case = _case(tmp_path, orientation)
    report = crop_files(**case, output_dir=tmp_path / "out", normalize=False)
    assert report.record["box_voxel"] == {"start": [11, 10, 12], "stop": [49, 57, 75]}
    assert report.mask is not None
    paste_file(report.mask, report.roi, tmp_path / "back.nii.gz")
    back, delivered = nib.load(tmp_path / "back.nii.gz"), nib.load(case["mask"])
    assert back.get_data_dtype() == delivered.get_data_dtype()
    np.testing.assert_allclose(back.affine, delivered.affine, atol=1e-4)
    inside = np.zeros_like(_nodes())
    inside[_BOX] = _nodes()[_BOX]
    expected = reoriented(Volume(inside, grid_ras(), grid_ras()), orientation).to_source()
    assert np.array_equal(np.asanyarray(back.dataobj), expected)


def test_label_map_in_another_orientation_is_the_same_grid(tmp_path: Path) -> None:
    case = _case(tmp_path, "LPS")
    case["vertebrae"] = _deliver(tmp_path, spine_labels(), "turned.nii.gz", "SAL")
    report = crop_files(**case, output_dir=tmp_path / "out")
    assert report.record["source"]["orientation"] == "LPS"


@pytest.mark.parametrize("part", ["vertebrae", "mask"])
def test_grids_that_do_not_agree_are_refused_and_nothing_is_written(tmp_path: Path, part: str) -> None:
    case = _case(tmp_path)
    array = spine_labels() if part == "vertebrae" else _nodes()
    nifti.write(tmp_path / "moved.nii.gz", array, grid_ras(origin_mm=(-99.0, -50.0, 20.0)))
    nifti.write(tmp_path / "halved.nii.gz", array[::2], grid_ras((30, 60, 90), (8.0, 4.0, 3.0)))
    for name, expected in (("moved", "1.00 mm apart"), ("halved", r"\(30, 60, 90\)")):
        with pytest.raises(GeometryError, match=expected) as caught:
            crop_files(**{**case, part: tmp_path / f"{name}.nii.gz"}, output_dir=tmp_path / "out")
        assert caught.value.reason == "grid_mismatch"
    assert not (tmp_path / "out").exists()


def test_mirrored_label_map_is_refused(tmp_path: Path) -> None:
    case = _case(tmp_path)
    mirrored = grid_ras().affine @ np.diag([-1.0, 1, 1, 1])
    place = type(grid_ras())((60, 60, 90), mirrored)
    nifti.write(tmp_path / "mirrored.nii.gz", spine_labels(), place)
    with pytest.raises(GeometryError, match="does not lie on"):
        crop_files(**{**case, "vertebrae": tmp_path / "mirrored.nii.gz"}, output_dir=tmp_path / "out")


def test_vertebrae_that_need_a_person_are_refused(tmp_path: Path) -> None:
    case = _case(tmp_path)
    with pytest.raises(LandmarkError) as caught:
        crop_files(**case, output_dir=tmp_path / "out", label_ids="verse")
    assert caught.value.reason in {"no_lumbar_level", "landmarks_implausible"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("normalize", [True, False])
def test_a_label_map_of_another_ct_is_refused(tmp_path: Path, phantom: Phantom, normalize: bool) -> None:
    """Right shape and affine; the levels lie 16 mm beside the bone."""
    case = {name: tmp_path / f"{name}.nii.gz" for name in ("ct", "vertebrae")}
    nifti.write_source(case["ct"], phantom.ct)
    for shift, reason in ((0, None), (4, "off_bone")):
        moved = phantom.vertebrae.with_array(np.roll(phantom.vertebrae.array, shift, 0))
        nifti.write_source(case["vertebrae"], moved)
        if reason is None:
            crop_files(**case, output_dir=tmp_path / "sound", normalize=normalize)
            continue
        with pytest.raises(
            LandmarkError, match=r"vertebrae\.nii\.gz: the labelled levels do not lie"
        ) as caught:
            crop_files(**case, output_dir=tmp_path / "out", normalize=normalize)
        assert caught.value.reason == reason
    assert not (tmp_path / "out").exists()


ACCEPT = ("--accept-landmarks", "counted from C2", "--reviewer", "Dr A")


def _beside_the_bone(folder: Path, phantom: Phantom) -> dict[str, str]:
    """A phantom whose levels lie 16 mm beside the bone, under names one level off: held twice over."""
    moved = phantom.vertebrae.with_array(np.roll(phantom.vertebrae.array, 4, 0))
    files = {"--ct": folder / "ct.nii.gz", "--vertebrae": folder / "vertebrae.nii.gz"}
    nifti.write_source(files["--ct"], phantom.ct)
    nifti.write_source(files["--vertebrae"], moved)
    return {option: str(path) for option, path in files.items()}


def test_a_person_overrules_every_check_and_the_record_says_who_and_why(
    tmp_path: Path, phantom: Phantom
) -> None:
    given = [item for pair in _beside_the_bone(tmp_path, phantom).items() for item in pair]
    given += ["--output-dir", str(tmp_path / "out"), "--case-id", "A"]
    held = CliRunner().invoke(crop, given)
    assert isinstance(held.exception, LandmarkError) and held.exception.reason == "off_bone"
    result = CliRunner().invoke(crop, [*given, *ACCEPT], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads((tmp_path / "out/A_roi.json").read_text())
    assert record["accepted"] == {"reviewer": "Dr A", "comment": "counted from C2"}
    assert record["anchored"] is True
    overruled = next(finding for finding in record["findings"] if finding.startswith("accepted: "))
    assert overruled.startswith("accepted: the labelled levels do not lie on bone of this CT (")
    assert "reviewed: the landmarks were accepted by Dr A" in record["findings"]
    assert "  By a person's word, the landmarks were accepted by Dr A." in result.output
    assert f"  A check that this person overruled: {overruled.removeprefix('accepted: ')}." in result.output


def test_without_a_word_the_record_says_that_nobody_overruled(tmp_path: Path) -> None:
    record = crop_files(**_case(tmp_path), output_dir=tmp_path / "out").record
    assert (record["accepted"], record["anchored"]) == (None, False)


@pytest.mark.parametrize("half", [ACCEPT[:2], ACCEPT[2:]], ids=" ".join)
def test_who_and_why_go_together(tmp_path: Path, half: tuple[str, ...]) -> None:
    result = _run_crop(tmp_path, *half)
    assert result.exit_code == 2
    assert "--accept-landmarks WHY and --reviewer WHO go together" in result.output
    with pytest.raises(UserError, match="who and why"):
        crop_files(**_case(tmp_path), output_dir=tmp_path / "out", words=Words("Dr A", " "))
    assert not (tmp_path / "out").exists()


def test_a_word_makes_no_landmarks(tmp_path: Path) -> None:
    with pytest.raises(LandmarkError):
        crop_files(
            **_case(tmp_path), output_dir=tmp_path / "out", label_ids="verse", words=Words("Dr A", "seen")
        )


_NOT_HU: dict[str, tuple[Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], str]] = {
    "scaled to 0..1": (lambda hu: (hu + 1024) / 4095, "not_ct"),
    "rescale not applied": (lambda hu: hu + 1024, "not_ct"),
    "NaN outside the field of view": (lambda hu: np.where(hu < -1000, np.nan, hu), "not_finite"),
    "100 too high": (lambda hu: hu + 100, "not_hu"),
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", _NOT_HU)
def test_a_ct_that_is_not_in_hu_is_refused_scaled_or_not(
    tmp_path: Path, phantom: Phantom, name: str, normalize: bool
) -> None:
    change, reason = _NOT_HU[name]
    case = {part: tmp_path / f"{part}.nii.gz" for part in ("ct", "vertebrae")}
    nifti.write_source(case["ct"], phantom.ct.with_array(change(phantom.ct.array.astype(np.float32))))
    nifti.write_source(case["vertebrae"], phantom.vertebrae)
    with pytest.raises(InputError, match=r"ct\.nii\.gz: .*; expected: .*; got: ") as caught:
        crop_files(**case, output_dir=tmp_path / "out", normalize=normalize)
    assert caught.value.reason == reason
    assert not (tmp_path / "out").exists()


def test_the_record_says_what_the_tissues_told(tmp_path: Path, phantom: Phantom) -> None:
    case = {part: tmp_path / f"{part}.nii.gz" for part in ("ct", "vertebrae")}
    nifti.write_source(case["ct"], phantom.ct)
    nifti.write_source(case["vertebrae"], phantom.vertebrae)
    told = crop_files(**case, output_dir=tmp_path / "out").record["tissue_hu"]
    assert told == pytest.approx({"bone_hu": 215, "muscle_hu": 56, "fat_hu": -104}, abs=12)
    assert crop_files(**_case(tmp_path), output_dir=tmp_path / "out").record["tissue_hu"]["fat_hu"] is None


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A case's files, CT and mask under names that crops have."""
    paths = _case(tmp_path)
    return {
        "ct": paths["ct"].rename(tmp_path / "B_ct.nii.gz"),
        "vertebrae": paths["vertebrae"],
        "mask": paths["mask"].rename(tmp_path / "A_mask.nii.gz"),
    }


@pytest.mark.parametrize("case_id", ["A", "B"])
def test_no_result_takes_the_place_of_an_input(tmp_path: Path, inputs: dict[str, Path], case_id: str) -> None:
    before = {path: path.read_bytes() for path in inputs.values()}
    with pytest.raises(UserError, match="take the place of an input"):
        crop_files(**inputs, output_dir=tmp_path, case_id=case_id)
    assert {path: path.read_bytes() for path in before} == before


def test_a_mask_beside_no_record_is_no_earlier_crops(tmp_path: Path, inputs: dict[str, Path]) -> None:
    own = inputs.pop("mask")
    crop_files(**inputs, output_dir=tmp_path, case_id="A")
    assert own.exists()


def test_paste_and_measure_spare_what_they_read(tmp_path: Path) -> None:
    report = crop_files(**_case(tmp_path), output_dir=tmp_path / "o")
    with pytest.raises(UserError, match="take the place of an input"):
        paste_file(report.ct, report.roi, report.ct)
    labels = tmp_path / "nodes.nii.gz"
    levels = tmp_path / "levels"
    levels.mkdir()
    given = ["--labels", str(labels), "--vertebrae", str(levels)]
    with pytest.raises(UserError, match=f"where the input comes from; .*; got: a place in {levels}"):
        measure.main([*given, "--output", str(levels / "nodes.json")], standalone_mode=False)
    with pytest.raises(UserError, match="where the input comes from"):
        crop_files(tmp_path / "LN_001_0000.nii.gz", levels, levels / "out")
    with pytest.raises(UserError, match="take the place of an input"):
        measure.main(["--labels", str(labels), "--output", str(labels)], standalone_mode=False)
    assert nifti.read_labels(labels).array.any()


@pytest.mark.parametrize("case_id", ["../x", "a/b", "", ".hidden", "a b"])
def test_case_id_cannot_leave_the_folder(tmp_path: Path, case_id: str) -> None:
    case = _case(tmp_path)
    with pytest.raises(UserError, match="case id"):
        crop_files(**case, output_dir=tmp_path / "out", case_id=case_id)


def test_paste_refuses_a_crop_of_another_region(tmp_path: Path) -> None:
    report = crop_files(**_case(tmp_path), output_dir=tmp_path / "out")
    nifti.write(tmp_path / "other.nii.gz", _nodes()[_BOX], grid_ras((38, 47, 63)))
    with pytest.raises(GeometryError, match=r"the region of LN_001_roi\.json"):
        paste_file(tmp_path / "other.nii.gz", report.roi, tmp_path / "back.nii.gz")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}'])
def test_paste_refuses_what_is_no_record(tmp_path: Path, content: str) -> None:
    report = crop_files(**_case(tmp_path), output_dir=tmp_path / "out")
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError) as caught:
        paste_file(report.ct, tmp_path / "bad.json", tmp_path / "back.nii.gz")
    assert caught.value.reason == "bad_roi"
    assert str(caught.value.file).endswith("bad.json") and caught.value.fix
    with pytest.raises(NotFoundError):
        paste_file(report.ct, tmp_path / "missing.json", tmp_path / "back.nii.gz")
    with pytest.raises(UserError, match="NIfTI extension"):
        paste_file(report.ct, report.roi, tmp_path / "back.png")


def test_a_folder_of_dicom_is_told_from_a_missing_file(tmp_path: Path) -> None:
    case = {**_case(tmp_path), "ct": tmp_path}
    with pytest.raises(NotFoundError, match=r"expected: \.nii or \.nii\.gz; got: a folder; fix: .*DICOM"):
        crop_files(**case, output_dir=tmp_path / "out")


def _run_crop(folder: Path, *extra: str) -> Result:
    options = [item for name, path in _case(folder).items() for item in (f"--{name}", str(path))]
    return CliRunner().invoke(crop, [*options, "--output-dir", str(folder / "out"), *extra])


def test_commands_write_and_say_what_was_found(tmp_path: Path) -> None:
    result = _run_crop(tmp_path, "--no-normalize", "--case-id", "mine")
    assert result.exit_code == 0, result.output
    assert "mine: voxels [11, 10, 12] to [49, 57, 75] (RAS+), L2 by l2" in result.output
    assert "node voxels inside: 20 of 22" in result.output
    arguments = ["--crop", tmp_path / "out/mine_mask.nii.gz", "--roi", tmp_path / "out/mine_roi.json"]
    back = CliRunner().invoke(paste, [*map(str, arguments), "--output", str(tmp_path / "back.nii.gz")])
    assert back.exit_code == 0, back.output
    assert np.asanyarray(nib.load(tmp_path / "back.nii.gz").dataobj).sum() == 18 + 2 * 300


@pytest.mark.parametrize("window", [("400", "-1000"), ("nan", "400"), ("-inf", "400")])
def test_window_must_be_a_window(tmp_path: Path, window: tuple[str, str]) -> None:
    result = _run_crop(tmp_path, "--hu-window", *window)
    assert result.exit_code == 2
    assert "LOW must be below HIGH" in result.output


def test_a_user_error_is_one_line_and_a_code_without_heavy_imports(tmp_path: Path) -> None:
    """The whole command as typed; it must not load nibabel, torch or the servers' clients."""
    arguments = ["crop", "--ct", "missing.nii.gz", "--vertebrae", "x", "--output-dir", str(tmp_path)]
    code = (
        "import sys\n"
        "from retroln.cli import main\n"
        f"sys.argv = ['retroln', *{arguments!r}]\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'nibabel', 'scipy', 'torch', 'sqlalchemy', 'mlflow', 'prefect', 'boto3'}\n"
        "    assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == NotFoundError.exit_code
    assert done.stderr == "error: missing.nii.gz: no such file; fix: check the path\n"
