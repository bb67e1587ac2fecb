"""Vertebrae: schemes, folders, and what a label map may not claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from spine import V2, grid_ras, reoriented, spine, spine_labels

from retroln.anatomy import vertebrae
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae, scheme_ids
from retroln.errors import GeometryError, InputError, NotFoundError
from retroln.imaging import nifti
from retroln.imaging.geometry import VoxelBox
from retroln.imaging.volume import Volume


@pytest.mark.parametrize(
    ("scheme", "top_to_bottom"),
    [
        ("totalseg-v2", (33, 32, 31, 30, 29, 28, 27, 26)),
        ("totalseg-v1", (24, 23, 22, 21, 20, 19, 18)),
        ("verse", (18, 19, 20, 21, 22, 23, 24, 26)),
    ],
)
def test_ids_of_each_scheme(scheme: vertebrae.LabelScheme, top_to_bottom: tuple[int, ...]) -> None:
    assert scheme_ids(scheme) == dict(zip(top_to_bottom, LEVEL_ORDER, strict=False))


def test_boxes_and_centroids_of_blocks() -> None:
    found = spine()
    assert list(found.levels) == list(LEVEL_ORDER)
    l2 = found.levels[Level.L2]
    assert l2.box == VoxelBox((24, 9, 45), (36, 19, 53))
    assert l2.voxels == 12 * 10 * 8
    np.testing.assert_allclose(l2.centroid_index(), (29.5, 13.5, 48.5))


def test_label_map_comes_back_in_v2_ids() -> None:
    labels = spine_labels()
    assert np.array_equal(spine(labels).to_label_map(), labels)


def test_other_scheme_and_other_values_are_ignored() -> None:
    labels = spine_labels()
    labels[0, 0, 0] = 7
    volume = Volume(labels, grid_ras(), grid_ras())
    assert set(Vertebrae.from_label_map(volume, "totalseg-v2").levels) == set(LEVEL_ORDER)
    assert not Vertebrae.from_label_map(volume.with_array(labels * 0), "verse").levels


def test_nothing_labelled_gives_no_levels() -> None:
    empty = spine(np.zeros((4, 4, 4), np.uint8))
    assert not empty.levels
    assert not empty.to_label_map().any()


def _write_levels(folder: Path, orientations: str = "RAS") -> None:
    labels = spine_labels()
    for i, level in enumerate(LEVEL_ORDER):
        mask = Volume((labels == V2[level]).astype(np.uint8), grid_ras(), grid_ras())
        orientation = orientations.split()[i % len(orientations.split())]
        nifti.write_source(folder / f"vertebrae_{level}.nii.gz", reoriented(mask, orientation))


def test_folder_equals_label_map_in_any_mix_of_orientations(tmp_path: Path) -> None:
    _write_levels(tmp_path, "RAS LPS PIR")
    (tmp_path / "liver.nii.gz").write_bytes(b"not read")
    found = vertebrae.read(tmp_path, "totalseg-v2")
    assert np.array_equal(found.to_label_map(), spine_labels())
    assert found.overlap_voxels == 0


def test_capitals_in_names_of_levels_do_not_matter_unless_two_differ_by_them(tmp_path: Path) -> None:
    _write_levels(tmp_path)
    (tmp_path / "vertebrae_L2.nii.gz").rename(tmp_path / "VERTEBRAE_L2.NII.GZ")
    assert np.array_equal(vertebrae.read(tmp_path, "totalseg-v2").to_label_map(), spine_labels())
    (tmp_path / "Vertebrae_L2.nii.gz").write_bytes(b"another")
    with pytest.raises(InputError, match=r"VERTEBRAE_L2.NII.GZ, Vertebrae_L2.nii.gz") as caught:
        Vertebrae.from_folder(tmp_path)
    assert caught.value.reason == "ambiguous_name"


def test_empty_file_means_level_not_found(tmp_path: Path) -> None:
    _write_levels(tmp_path)
    nifti.write(tmp_path / "vertebrae_L4.nii.gz", np.zeros((60, 60, 90), np.uint8), grid_ras())
    assert Level.L4 not in Vertebrae.from_folder(tmp_path).levels


def test_overlap_of_levels_is_counted(tmp_path: Path) -> None:
    _write_levels(tmp_path)
    moved = np.roll(spine_labels() == V2[Level.L4], 9, axis=2)
    nifti.write(tmp_path / "vertebrae_L4.nii.gz", moved.astype(np.uint8), grid_ras())
    # nine slices up, L4's block fills 6 of L3's 8 slices and 9 of the 10 rows of each (y runs with the level)
    assert Vertebrae.from_folder(tmp_path).overlap_voxels == 12 * 9 * 6


def test_level_on_another_grid_is_refused(tmp_path: Path) -> None:
    _write_levels(tmp_path)
    shifted = grid_ras(origin_mm=(-100.0, -50.0, 21.0))
    nifti.write(tmp_path / "vertebrae_L4.nii.gz", (spine_labels() == 28).astype(np.uint8), shifted)
    with pytest.raises(GeometryError, match=r"1\.00 mm apart") as caught:
        Vertebrae.from_folder(tmp_path)
    assert caught.value.reason == "grid_mismatch"


def test_combined_map_named_as_one_level_is_refused(tmp_path: Path) -> None:
    nifti.write(tmp_path / "vertebrae_L2.nii.gz", spine_labels(), grid_ras())
    with pytest.raises(InputError) as caught:
        Vertebrae.from_folder(tmp_path)
    assert caught.value.reason == "not_a_level_mask"


def test_folder_without_levels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="vertebrae_T12"):
        Vertebrae.read(tmp_path, "totalseg-v2")


def _with_ribs(centre: tuple[int, int, int]) -> Vertebrae:
    labels = spine_labels()
    x, y, z = centre
    labels[x : x + 2, y : y + 2, z : z + 2] = 103
    return spine(labels)


def test_a_rib_names_the_level_that_it_starts_at() -> None:
    assert _with_ribs((37, 12, 71)).rib_12 is Level.T12  # slices 67..74
    assert _with_ribs((37, 12, 60)).rib_12 is Level.L1
    assert _with_ribs((55, 12, 71)).rib_12 is None  # 100 mm away
    assert spine().rib_12 is None
    assert _with_ribs((37, 12, 71)).ribs_at_t12 and not _with_ribs((37, 12, 60)).ribs_at_t12


@pytest.mark.parametrize("rib_12", [None, Level.T12, Level.L1])
def test_facts_survive_the_store(rib_12: Level | None) -> None:
    found = replace(spine(), rib_12=rib_12, overlap_voxels=3)
    back = spine().with_facts(json.loads(json.dumps(found.facts())))
    assert (back.rib_12, back.overlap_voxels) == (rib_12, 3)


def test_facts_of_the_first_release_are_understood() -> None:
    old = {"overlap_voxels": 0, "ribs_at_t12": True}
    assert spine().with_facts(old).rib_12 is Level.T12
    assert spine().with_facts(old | {"ribs_at_t12": False}).rib_12 is None
