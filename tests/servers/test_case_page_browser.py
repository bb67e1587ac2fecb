"""The case page in a real browser (Debian's chromium), from `file://`."""

import os
from pathlib import Path

import numpy as np
import pytest

from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.report.case_page import CasePage, case_page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHAPE = (60, 72, 24)
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists() and "CI" not in os.environ, reason="apt-get install -y chromium"
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Black crop, one node on the patient's right and anterior, one left and posterior."""
    grid = Grid(SHAPE, np.diag([2.5, 2.5, 7.0, 1.0]))
    labels = np.zeros(SHAPE, np.uint8)
    labels[48:54, 60:66, 18:21] = 1
    labels[6:12, 8:14, 3:6] = 2
    ct = np.where(labels == 1, 200, -1000).astype(np.int16)
    row = {"station": None, "level": "L3", "long_axis_mm": 15.0, "volume_mm3": 900.0}
    nodes = [
        row | {"label": 1, "short_axis_mm": 15.0, "recist": "target", "centroid_world_mm": [126, 156, 133]},
        row | {"label": 2, "short_axis_mm": 8.0, "recist": "normal", "centroid_world_mm": [21, 26, 28]},
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    page = CasePage(
        "LN_001", "P1", Volume(ct, grid, grid), Volume(labels, grid, grid), nodes, {"Model": "retroln 1"}
    )
    path.write_text(case_page(page))
    return path


class Opened:
    """A tab with everything it complained of and every request it made."""

    def __init__(self, browser, path, **context):
        self.context = browser.new_context(viewport={"width": 1300, "height": 900}, **context)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def slices(self):
        canvases = self.page.locator("canvas").all()
        return [int(canvas.get_attribute("data-slice")) for canvas in canvases]

    def brightness(self, plane, x, y):
        """Red of the drawn picture of `plane` at a fraction of its width and height."""
        return self.page.evaluate(
            """([plane, x, y]) => {
              const canvas = document.querySelector(`[data-plane=${plane}] canvas`);
              const copy = document.createElement("canvas").getContext("2d");
              copy.drawImage(canvas, -canvas.width * x, -canvas.height * y);
              return copy.getImageData(0, 0, 1, 1).data[0];
            }""",
            [plane, x, y],
        )


@pytest.fixture
def opened(browser, page_file):
    tab = Opened(browser, page_file)
    tab.page.wait_for_selector("html[data-ready=yes]")
    yield tab
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [page_file.as_uri()]
    tab.context.close()


def test_the_page_opens_on_the_largest_node(opened):
    assert opened.slices() == [19, 62, 50]
    assert opened.page.locator("tr.shown").get_attribute("data-row") == "1"


def test_a_click_on_a_row_shows_that_node(opened):
    opened.page.locator('tr[data-row="2"]').click()
    assert opened.slices() == [4, 10, 8]
    assert opened.page.locator("tr.shown").get_attribute("data-row") == "2"


def test_the_patients_right_is_drawn_on_the_left_and_anterior_up(opened):
    opened.page.locator("#cross").uncheck()
    x, y = 1 - 51 / 60, 1 - 63 / 72
    assert opened.brightness("axial", x, y) > 200
    assert opened.brightness("axial", 1 - x, y) == 0
    assert opened.brightness("axial", x, 1 - y) == 0
    assert opened.brightness("sagittal", 1 - 63 / 72, 1 - 19.5 / 24) > 200


def test_wheel_keys_slider_and_click_move_the_slices(opened):
    axial = opened.page.locator("[data-plane=axial] canvas")
    axial.hover()
    opened.page.mouse.wheel(0, 100)
    opened.page.wait_for_function("document.querySelector('canvas').dataset.slice === '18'")
    axial.press("ArrowUp")
    axial.press("PageUp")
    assert opened.slices() == [23, 62, 50]
    opened.page.locator("[aria-label='Axial slice']").fill("7")
    assert opened.slices() == [7, 62, 50]
    box = axial.bounding_box()
    axial.click(position={"x": box["width"] * 0.26, "y": box["height"] * 0.51})
    assert opened.slices() == [7, 35, 44]


def test_keys_step_through_nodes_and_windows(opened):
    opened.page.keyboard.press("n")
    assert opened.slices() == [4, 10, 8]
    opened.page.keyboard.press("p")
    assert opened.slices() == [19, 62, 50]
    opened.page.keyboard.press("4")
    assert opened.page.locator("#width").input_value() == "1800"
    opened.page.keyboard.press("o")
    assert not opened.page.locator("#outlines").is_checked()


def test_the_page_fits_a_phone(opened):
    opened.page.set_viewport_size({"width": 400, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400


def test_without_script_the_still_picture_and_the_table_remain(browser, page_file):
    tab = Opened(browser, page_file, java_script_enabled=False)
    assert tab.page.locator("figure img").is_visible()
    assert not tab.page.locator("section.viewer").is_visible()
    assert tab.page.locator("tbody tr").count() == 2
    tab.context.close()


def test_a_browser_that_cannot_unpack_falls_back_to_the_still_picture(browser, page_file):
    context = browser.new_context()
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.wait_for_selector("#still img", state="visible")
    assert not page.locator("section.viewer").is_visible()
    context.close()
