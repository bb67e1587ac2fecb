import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.report.case_page import CasePage, case_page, encode

SHAPE = (30, 40, 20)


def _page(*, affine=None, nodes=None, **changes):
    grid = Grid(SHAPE, np.diag([1.0, 1.0, 2.5, 1.0]) if affine is None else affine)
    rng = np.random.default_rng(5)
    labels = np.zeros(SHAPE, np.uint16)
    labels[3:8, 10:18, 5:9] = 1
    labels[20:26, 20:30, 12:15] = 2
    row = {"station": "para_aortic", "level": "L3", "long_axis_mm": 20.0, "volume_mm3": 1234.0}
    two = [
        row | {"label": 1, "short_axis_mm": 9.94, "recist": "normal", "centroid_world_mm": [5, 13.5, 16.25]},
        row
        | {"label": 2, "short_axis_mm": 15.0, "recist": "target", "centroid_world_mm": [22.5, 24.5, 32.5]},
    ]
    given = {
        "case_id": "LN_001",
        "patient_id": "P1",
        "ct": Volume(rng.integers(-150, 200, SHAPE, np.int16), grid, grid),
        "labels": Volume(labels, grid, grid),
        "nodes": two if nodes is None else nodes,
        "provenance": {"Model": "retroln version 3", "Source sha256": "ab" * 32},
    }
    return CasePage(**(given | changes))


def _data(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def _unpacked(text, kind):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), kind).reshape(SHAPE, order="F")


def _text(html):
    return re.sub(r"\s+", " ", re.sub(r"<(style|script)\b.*?</\1>|<[^>]+>", " ", html, flags=re.S))


def test_the_volumes_survive_the_way_into_the_page():
    page = _page()
    data = _data(case_page(page))
    assert data["shape"] == list(SHAPE)
    assert data["spacing"] == [1.0, 1.0, 2.5]
    assert np.array_equal(_unpacked(data["labels"], "<u2"), page.labels.array)
    codes, values = np.array(data["codeHu"]).T
    shown_hu = np.interp(_unpacked(data["ct"], np.uint8), codes, values)
    assert np.abs(shown_hu - page.ct.array).max() <= 1


def test_display_bytes_keep_order_and_clip():
    codes = encode(np.array([-3000, -1024, -200, 0, 2, 250, 1500, 9000]))
    assert codes.tolist() == [0, 0, 15, 115, 116, 240, 255, 255]


def test_nodes_come_largest_first_with_their_class_in_words():
    html = case_page(_page())
    assert re.findall(r'data-row="(\d+)"', html) == ["2", "1"]
    assert "15.0 20.0 1.23 Target, ≥ 15 mm" in _text(html)
    assert "9.9 20.0 1.23 Normal, &lt; 10 mm" in _text(html)
    assert [n["at"] for n in _data(html)["nodes"]] == [[22, 24, 13], [5, 14, 6]]


def test_a_node_free_case_says_so_without_reassuring():
    page = _page(nodes=[])
    html = _text(case_page(page))
    assert "marked no lymph node" in html
    assert "does not exclude" in html


def test_every_given_text_is_escaped():
    evil = "</script><script>alert(1)</script>"
    row = dict(_page().nodes[0]) | {"station": evil, "level": evil}
    html = case_page(
        _page(
            case_id=evil,
            patient_id=evil,
            nodes=[row],
            provenance={evil: evil},
            cautions=[evil],
            events=[(evil, evil, evil)],
            model=evil,
            notice=evil,
        )
    )
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 11


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "data", "action")]


def test_nothing_is_loaded_from_elsewhere():
    html = case_page(_page())
    links = _Links()
    links.feed(html)
    assert links.found
    assert all(link.startswith("data:") for link in links.found)
    assert not re.search(r"https?://|@import|url\(", html)


def test_the_content_policy_allows_exactly_the_pages_own_script():
    html = case_page(_page())
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    )


def test_cautions_come_first_and_only_when_there_are_any():
    assert "Check first" not in case_page(_page())
    html = _text(
        case_page(
            _page(
                rung="extrapolated", short_sides=("left", "inferior (L5)"), cautions=["Numbering unanchored."]
            )
        )
    )
    assert html.index("Check first") < html.index("Numbering unanchored.") < html.index("Nodes marked")
    assert "Cut short at left, inferior (L5)" in html
    assert "Cut short at no side" in _text(case_page(_page()))


def test_an_oblique_scan_is_named():
    angle = np.radians(12)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert "12° off" in case_page(_page(affine=affine, nodes=[]))


def test_accounting_is_shown_as_a_sum():
    counts = {"in": 4, "done": 2, "skipped": 1, "quarantined": 1, "failed": 0}
    page = _page(accounting=[("prepare, run 3", counts)], events=[("2026-01-02", "prepared", "by run 3")])
    html = _text(case_page(page))
    assert "prepare, run 3: 4 cases in = 2 done + 1 skipped + 1 quarantined + 0 failed" in html
    assert "2026-01-02 prepared by run 3" in html


def test_a_node_without_voxels_and_labels_of_another_grid_are_bugs():
    page = _page()
    with pytest.raises(ValueError, match=r"\[9\] have no voxels"):
        case_page(_page(nodes=[dict(page.nodes[0]) | {"label": 9}]))
    with pytest.raises(ValueError, match="labels must be"):
        case_page(_page(labels=Volume(page.labels.array[1:], page.ct.grid, page.ct.grid)))


def test_a_crop_of_the_reference_size_stays_below_five_megabytes():
    shape = (190, 228, 71)
    grid = Grid(shape, np.diag([0.789, 0.789, 2.5, 1.0]))
    noisy = np.random.default_rng(1).normal(40, 20, shape).astype(np.int16)
    ct, labels = Volume(noisy, grid, grid), Volume(np.zeros(shape, np.uint8), grid, grid)
    assert len(case_page(_page(ct=ct, labels=labels, nodes=[]))) < 5_000_000


def test_a_very_large_crop_is_thinned_and_the_page_says_so():
    shape = (200, 200, 200)
    grid = Grid(shape, np.eye(4))
    ct = Volume(np.zeros(shape, np.int16), grid, grid)
    html = case_page(_page(ct=ct, labels=ct.with_array(np.zeros(shape, np.uint8)), nodes=[]))
    data = _data(html)
    assert np.prod(data["shape"]) <= 5_000_000
    assert [n * mm for n, mm in zip(data["shape"], data["spacing"], strict=True)] == [200, 200, 200]
    assert "every 2. × 1. × 1. voxel" in html
