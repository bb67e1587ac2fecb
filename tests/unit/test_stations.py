"""Stations around two round vessels with known places, and the level at a height."""

import numpy as np
import pytest

from retroln.anatomy import nodes, stations
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume

SPACING = 2.0
AORTA, CAVA = (40.0, 50.0), (64.0, 52.0)


def at_mm(right, anterior, superior=60.0):
    return (float(right), float(anterior), float(superior))


def disc(array, id_, centre_mm, radius_mm, heights):
    index = np.indices(array.shape[:2]).transpose(1, 2, 0) * SPACING
    inside = ((index - centre_mm) ** 2).sum(-1) <= radius_mm**2
    array[inside, heights] = id_


@pytest.fixture()
def organs():
    """Aorta and IVC above 40 mm, iliac arteries below, kidneys beside, S1 from 20 to 38 mm."""
    array = np.zeros((70, 60, 60), np.uint8)
    disc(array, 26, (52, 20), 10, slice(10, 20))
    for id_, centre in ((52, AORTA), (63, CAVA)):
        disc(array, id_, centre, 9, slice(20, 60))
    for id_, centre in ((65, (30, 52)), (66, (74, 52))):
        disc(array, id_, centre, 6, slice(0, 20))
    disc(array, 2, (110, 40), 16, slice(45, 60))
    disc(array, 3, (4, 40), 12, slice(45, 60))
    grid = Grid(array.shape, np.diag([SPACING] * 3 + [1.0]))
    return Volume(array, grid, grid)


@pytest.mark.parametrize(
    ("point", "station"),
    [
        (at_mm(80, 52), "paracaval"),
        (at_mm(64, 68), "precaval"),
        (at_mm(66, 36), "retrocaval"),
        (at_mm(52, 50), "interaortocaval"),
        (at_mm(51, 40), "interaortocaval"),
        (at_mm(40, 66), "preaortic"),
        (at_mm(38, 34), "retroaortic"),
        (at_mm(22, 50), "para-aortic"),
        (at_mm(20, 44, 100), "hilar"),
        (at_mm(90, 44, 100), "hilar"),
        (at_mm(22, 52, 30), "common iliac"),
        (at_mm(22, 52, 10), None),
        (at_mm(40, 100), None),
        (at_mm(40, 66, 500), None),
    ],
)
def test_station_follows_from_the_nearest_vessel(organs, point, station):
    assert stations.assign(point, organs) == station


def test_without_organs_or_the_other_vessel_no_station_is_guessed(organs):
    assert stations.assign(at_mm(52, 50), None) is None
    no_cava = organs.with_array(np.where(organs.array == 63, 0, organs.array))
    assert stations.assign(at_mm(52, 50), no_cava) is None
    assert stations.assign(at_mm(22, 50), no_cava) == "para-aortic"
    no_aorta = organs.with_array(np.where(organs.array == 52, 0, organs.array))
    assert stations.assign(at_mm(52, 50), no_aorta) is None


def test_a_gap_in_the_vessel_map_is_bridged_but_not_its_end(organs):
    gap = organs.array.copy()
    gap[:, :, 29:32] = 0
    assert stations.assign(at_mm(52, 50, 60), organs.with_array(gap)) == "interaortocaval"
    gap[:, :, 25:36] = 0
    assert stations.assign(at_mm(52, 50, 60), organs.with_array(gap)) is None


def vertebrae():
    array = np.zeros((10, 10, 60), np.uint8)
    for id_, first, last in ((29, 10, 21), (30, 20, 32), (31, 35, 45)):
        array[2:6, 2:6, first : last + 1] = np.where(
            array[2:6, 2:6, first : last + 1], array[2:6, 2:6, first : last + 1], id_
        )
    grid = Grid(array.shape, np.diag([1.0, 1.0, SPACING, 1.0]))
    return Volume(array, grid, grid)


@pytest.mark.parametrize(
    ("slice_", "level"),
    [
        (15, "L3"),
        (22, "L2"),
        (26, "L2"),
        (33, "L2"),
        (34, "L1"),
        (45, "L1"),
        (50, "L1"),
        (51, None),
        (4, None),
    ],
)
def test_level_is_the_vertebra_at_that_height(slice_, level):
    assert stations.Levels.of(vertebrae()).at((5.0, 5.0, slice_ * SPACING)) == level


def test_an_empty_vertebra_map_gives_no_level():
    empty = vertebrae().with_array(np.zeros((10, 10, 60), np.uint8))
    assert stations.Levels.of(empty).at((5.0, 5.0, 40.0)) is None


def test_measure_adds_station_and_level(organs):
    labels = np.zeros(organs.array.shape, np.uint8)
    labels[26, 24:27, 30] = 1
    levels = np.zeros_like(organs.array)
    levels[20:30, 5:15, 25:40] = 29
    (node,) = nodes.measure(
        organs.with_array(labels), organs=organs, levels=stations.Levels.of(organs.with_array(levels))
    )
    assert (node.station, node.level) == ("interaortocaval", "L3")
    assert node.to_dict()["station"] == "interaortocaval"


def test_ids_are_those_of_totalsegmentator():
    names = pytest.importorskip("totalsegmentator.map_to_binary").class_map["total"]
    assert names[stations.AORTA] == "aorta"
    assert names[stations.INFERIOR_VENA_CAVA] == "inferior_vena_cava"
    assert sorted(names[id_] for id_ in stations.ILIACS) == [
        "iliac_artery_left",
        "iliac_artery_right",
        "iliac_vena_left",
        "iliac_vena_right",
    ]
    assert names[stations.KIDNEY_RIGHT] == "kidney_right" and names[stations.KIDNEY_LEFT] == "kidney_left"
    assert all(names[id_] == f"vertebrae_{name}" for id_, name in stations.LEVELS.items())
