"""`retroln measure` on files, from a shell."""

import csv
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

HEADER = ["label", "volume_mm3", "short_axis_mm", "long_axis_mm", "centroid_world_mm", "recist", "stratum"]


def save(path, array, codes="RAS"):
    image = nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]))
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(image.as_reoriented(change), path)
    return path


def two_nodes():
    array = np.zeros((30, 30, 12), np.uint8)
    array[2:5, 2:6, 2:4] = 1
    array[12:26, 10:25, 5:8] = 1
    return array


def run(*arguments):
    command = [sys.executable, "-W", "error", "-m", "retroln.cli", "measure", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LPS"])
def test_json_is_the_same_from_every_orientation(tmp_path, codes):
    labels = save(tmp_path / "n.nii.gz", two_nodes(), codes)
    done = run("--labels", labels, "--output", tmp_path / "out" / "n.json")
    assert (done.returncode, done.stderr) == (0, "")
    small, large = json.loads((tmp_path / "out" / "n.json").read_text())
    assert set(HEADER) | {"station", "level"} == set(small)
    assert small["volume_mm3"] == 48.0 and small["long_axis_mm"] == pytest.approx(5.0)
    assert small["short_axis_mm"] == pytest.approx(24 / 5) and small["recist"] == "normal"
    assert small["centroid_world_mm"] == pytest.approx([3.0, 3.5, 5.0])
    assert large["recist"] == "target" and large["station"] is None


def test_csv_has_one_line_per_node(tmp_path):
    labels = save(tmp_path / "n.nii", two_nodes())
    assert run("--labels", labels, "--output", tmp_path / "n.csv").returncode == 0
    with (tmp_path / "n.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[: len(HEADER)] == HEADER and len(rows) == 2
    assert [float(mm) for mm in rows[0]["centroid_world_mm"].split()] == pytest.approx([3.0, 3.5, 5.0])


def test_an_empty_map_gives_an_empty_list(tmp_path):
    labels = save(tmp_path / "n.nii.gz", np.zeros((5, 5, 5), np.uint8))
    assert run("--labels", labels, "--output", tmp_path / "n.json").returncode == 0
    assert json.loads((tmp_path / "n.json").read_text()) == []


def test_instances_and_level(tmp_path):
    array = two_nodes()
    array[12:26, 10:25, 5:8] = 9
    array[2:5, 2:6, 3] = 9
    vertebrae = np.zeros(array.shape, np.uint8)
    vertebrae[10:20, 2:8, 0:9] = 22
    done = run(
        *("--labels", save(tmp_path / "n.nii.gz", array), "--output", tmp_path / "n.json", "--instances"),
        *("--vertebrae", save(tmp_path / "v.nii.gz", vertebrae), "--label-ids", "verse"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "n.json").read_text())
    assert [(node["label"], node["level"]) for node in found] == [(1, "L3"), (9, "L3")]


@pytest.mark.parametrize(("option", "what"), [("--organs", "organ map"), ("--vertebrae", "vertebra map")])
def test_a_map_of_another_scan_is_refused_in_one_line_that_names_it(tmp_path, option, what):
    labels = save(tmp_path / "n.nii.gz", two_nodes())
    other = save(tmp_path / "other.nii.gz", np.zeros((30, 30, 13), np.uint8))
    done = run("--labels", labels, option, other, "--output", tmp_path / "n.json")
    assert done.returncode == 3
    assert f"{other}: {what} has another shape than the label map" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "n.json").exists()


def test_a_ct_is_not_an_organ_map(tmp_path):
    array = two_nodes()
    labels = save(tmp_path / "n.nii.gz", array)
    ct = save(tmp_path / "ct.nii.gz", np.full(array.shape, 240, np.int16))
    done = run("--labels", labels, "--organs", ct, "--output", tmp_path / "n.json")
    assert done.returncode == 3
    assert f"{ct}: no map of organs" in done.stderr and "got: int16 from 240 to 240" in done.stderr


@pytest.mark.parametrize("option", ["--organs", "--vertebrae", "--labels"])
def test_a_file_with_values_below_0_is_no_label_map_of_any_kind(tmp_path, option):
    hu = np.linspace(-1000, 1200, 30 * 30 * 12).reshape(30, 30, 12).astype(np.int16)
    ct = save(tmp_path / "ct.nii.gz", hu)
    given = {"--labels": save(tmp_path / "n.nii.gz", two_nodes()), option: ct}
    done = run(*(part for pair in given.items() for part in pair), "--output", tmp_path / "n.json")
    assert done.returncode == 3
    assert f"{ct}: not a label map; expected: 0 outside, whole numbers above" in done.stderr
    assert "; got: values from -1000 to 1200; fix: name the label map" in done.stderr


def test_a_ct_is_not_a_label_map(tmp_path):
    done = run(
        "--labels", save(tmp_path / "ct.nii.gz", np.full((4, 4, 4), -900, np.int16)), "--output", "x.json"
    )
    assert done.returncode == 3 and "label map" in done.stderr
    assert len(done.stderr.splitlines()) == 1
