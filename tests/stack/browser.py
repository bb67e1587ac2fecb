"""Drives the pages of Prefect and MLflow in Debian's Chromium as a person would: by what is written there."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers.test_case_page_browser import CHROMIUM, FLAGS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from infra.stack.plan import Stack

_PATIENCE_MS = 60_000  # two busy cores
_COLOURS = 128
_SIZE = {"width": 1280, "height": 900}


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield running
        finally:
            running.close()


class Tab:
    """A tab, and every address outside this machine that its pages asked for."""

    def __init__(self, browser: Browser, user: str | None = None, password: str = "") -> None:
        login = {"username": user, "password": password} if user else None
        self.context = browser.new_context(
            viewport=_SIZE,  # type: ignore[arg-type]
            http_credentials=login,  # type: ignore[arg-type]
        )
        self.context.set_default_timeout(_PATIENCE_MS)
        self.context.add_init_script("localStorage.setItem('color-scheme', '\"light\"')")
        self.page = self.context.new_page()
        self.abroad: list[str] = []
        self.context.on("request", lambda request: self._note(request.url))

    def _note(self, address: str) -> None:
        if re.match(r"(https?|wss?)://(?!127\.0\.0\.1[:/])", address):
            self.abroad.append(address)


class PrefectPages:
    """Prefect's pages (the first of its two UIs: the second asks a host abroad for settings)."""

    def __init__(self, tab: Tab, stack: Stack) -> None:
        self.page, self._url = tab.page, stack.prefect_url
        self.page.goto(f"{self._url}/login")
        self.page.locator("input[type=password]").fill(stack.secrets["prefect"])
        self.page.get_by_role("button", name="Login").click()
        self.page.wait_for_url("**/dashboard*")
        self.page.reload()  # else a notice about the moment before the login lies over the forms' buttons

    def deployment(self, name: str) -> None:
        """From the menu to a deployment's page."""
        self.page.locator("a", has_text="Deployments").first.click()
        self.page.get_by_role("link", name=name, exact=True).first.click()
        self.page.get_by_role("button", name="Run", exact=True).wait_for()

    def run_form(self, name: str) -> None:
        """The form that starts a deployment with parameters of one's own."""
        self.deployment(name)
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        self.page.get_by_role("button", name="Submit").wait_for()

    def flow_run(self, flow_run_id: object) -> None:
        """The page of a flow run."""
        self.page.goto(f"{self._url}/runs/flow-run/{flow_run_id}")
        self.page.get_by_text("Artifacts", exact=True).first.wait_for()

    def tab(self, name: str) -> None:
        """One of the tabs of a page."""
        self.page.get_by_text(name, exact=True).first.click()

    def artifact(self, key: str) -> None:
        """From the artifacts of a flow run to one of them."""
        self.page.locator("a[href*='/artifacts/artifact/']", has_text=key).first.click()
        self.page.wait_for_url("**/artifacts/artifact/**")

    def field(self, form: Page | Locator, name: str) -> Locator:
        """A parameter's or an answer's part of a form, with its description."""
        return form.locator(".schema-form-property").filter(has_text=re.compile(rf"^{name}")).first


class MlflowPages:
    """MLflow's pages, as one of its users."""

    def __init__(self, tab: Tab, stack: Stack) -> None:
        self.page, self._url = tab.page, stack.mlflow_url

    def version(self, model: str, version: int) -> None:
        """The page of a registered version, without the assistant that opens beside it at first."""
        self.page.goto(f"{self._url}/#/models/{model}/versions/{version}")
        self.page.get_by_placeholder("Name").wait_for()
        assistant = self.page.get_by_label("Close", exact=True)
        if assistant.count():
            assistant.first.click()

    def add_tag(self, name: str, value: str) -> None:
        """Name, value, Add."""
        self.page.get_by_placeholder("Name").fill(name)
        self.page.get_by_placeholder("Value").fill(value)
        self.page.get_by_role("button", name="Add", exact=True).click()
        self.page.get_by_role("cell", name=name, exact=True).wait_for(state="attached")

    def show_tag(self, name: str) -> None:
        """Roll the table of tags until one of them is seen."""
        self.page.get_by_role("cell", name=name, exact=True).scroll_into_view_if_needed()

    def alias_form(self) -> Locator:
        """The form behind the pencil beside the aliases."""
        self.page.get_by_title("Edit aliases").or_(self.page.get_by_title("Add aliases")).first.click()
        form = self.page.get_by_role("dialog")
        form.get_by_role("combobox").wait_for()
        return form


def keep_picture(page: Page, name: str) -> None:
    """A picture for the documentation, if RETROLN_SCREENSHOTS names a folder; 128 colours keep it small."""
    folder = os.environ.get("RETROLN_SCREENSHOTS")
    if not folder:
        return
    from PIL import Image

    page.wait_for_timeout(1500)  # what slides in has arrived
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(
            Path(folder, f"{name}.png"), optimize=True
        )
