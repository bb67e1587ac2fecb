"""The platform in a browser: start inference from its form, decide by Prefect's form, review in MLflow.

Every test ends with what the catalog and the registry say. The network was trained for a few steps on
phantoms; nothing that it finds means anything. Only the names of its versions matter here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from retroln.catalog.states import ScanState
from tests.stack.browser import CHROMIUM, MlflowPages, PrefectPages, Tab, chromium, keep_picture
from tests.stack.driver import Platform, wait
from tests.stack.test_pipeline import SPEC, prepared

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["prepared"]
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists() and "CI" not in os.environ, reason="apt-get install -y chromium"
)
NEW_CASE = "NEW-CT1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium."""
    with chromium() as running:
        yield running


@pytest.fixture
def prefect_pages(browser: Browser, platform: Platform) -> Iterator[PrefectPages]:
    """Prefect's pages after the login; whatever they ask for lies on this machine."""
    tab = Tab(browser)
    yield PrefectPages(tab, platform.stack)
    tab.context.close()
    assert tab.abroad == []


@pytest.fixture
def mlflow_pages(browser: Browser, platform: Platform) -> Iterator[MlflowPages]:
    """MLflow's pages as its user `reviewer`; whatever they ask for lies on this machine."""
    tab = Tab(browser, "reviewer", platform.stack.secrets["mlflow"]["reviewer"])
    yield MlflowPages(tab, platform.stack)
    tab.context.close()
    assert tab.abroad == []


@pytest.fixture
def champion(prepared: Platform) -> int:
    """Version of a champion whose inference is done; trained and promoted here if there is none yet."""
    platform, registry = prepared, prepared.workspace.registry
    version = registry.get_alias("champion")
    if version is None:
        if registry.get_alias("candidate") is None:
            platform.run("train", spec=SPEC.model_dump(mode="json"), timeout_s=400)
        review = {"approve": True, "reviewer": "Dr A", "comment": "the first"}
        assert platform.run("promote", review=review).state_name == "Completed"
        _inferred(platform, 0)
        version = registry.get_alias("champion")
    assert version is not None
    return version


def test_forms_tell_what_each_parameter_means(prefect_pages: PrefectPages, platform: Platform) -> None:
    for name in ("infer", "promote", "train"):
        deployment = platform.prefect.read_deployment_by_name(f"{name}/{name}")
        prefect_pages.run_form(name)
        parameters = deployment.parameter_openapi_schema["properties"]
        assert parameters
        for parameter, schema in parameters.items():
            field = prefect_pages.field(prefect_pages.page, parameter)
            assert schema["description"] in field.inner_text()
    for text in ("the published network, or a small one for the CPU", "training iterations per epoch"):
        prefect_pages.page.get_by_text(text).wait_for()
    keep_picture(prefect_pages.page, "prefect-train-form")


def test_inference_from_its_form_to_the_case_page(
    champion: int, prefect_pages: PrefectPages, platform: Platform
) -> None:
    _add_new_case(platform)
    before = len(platform.runs_of("infer"))
    page = prefect_pages.page
    prefect_pages.run_form("infer")
    keep_picture(page, "prefect-infer-form")
    page.get_by_role("button", name="Submit").click()
    run = wait(lambda: platform.runs_of("infer")[before:] and platform.runs_of("infer")[0], 120, "no run")
    prefect_pages.flow_run(run.id)
    page.get_by_text(re.compile(r"infer: [1-9]\d* done")).first.wait_for(timeout=180_000)
    page.get_by_text("Completed", exact=True).first.wait_for()
    prefect_pages.tab("Artifacts")
    page.get_by_text("infer-results").first.wait_for()
    keep_picture(page, "prefect-infer-run")
    prefect_pages.artifact("infer-accounting")
    row = page.get_by_role("row").filter(has_text="done").first
    assert row.inner_text().split() == ["done", platform.ended(run.id).name.split()[1]]
    page.go_back()
    prefect_pages.tab("Artifacts")
    prefect_pages.artifact("infer-results")
    row = page.get_by_role("row").filter(has_text=NEW_CASE)
    link = row.get_by_role("link", name="page.html")
    link.wait_for()
    keep_picture(page, "prefect-infer-results")
    _look_at_case_page(prefect_pages, str(link.get_attribute("href")))
    scan = platform.catalog.current_scan(NEW_CASE)
    assert scan is not None
    prediction = platform.catalog.current_prediction(scan.scan_id)
    assert prediction is not None
    assert prediction.version == champion
    assert prediction.page_key is not None
    assert prediction.page_key in str(link.get_attribute("href"))
    assert platform.runs_of("infer")[0].id == run.id


def test_reviewer_decides_in_the_form_of_a_suspended_promotion(
    champion: int, prefect_pages: PrefectPages, platform: Platform
) -> None:
    version, before = _another_candidate(platform, champion), len(platform.runs_of("infer"))
    flow_run = platform.start("promote")
    platform.in_state(flow_run, "Suspended")
    page = prefect_pages.page
    prefect_pages.flow_run(flow_run)
    page.get_by_text(f"promote: version {version} waits for a reviewer").first.wait_for()
    page.get_by_role("button", name="Resume").click()
    form = page.get_by_role("dialog")
    for text in ("sensitivity_ge10mm", "needed at least", f"Version {version} in MLflow", "Who decides"):
        form.get_by_text(text).first.wait_for()
    form.get_by_role("switch").click()
    prefect_pages.field(form, "Reviewer").locator("textarea").fill("Dr B")
    prefect_pages.field(form, "Comment").locator("textarea").fill("looked at every page")
    keep_picture(page, "prefect-promote-form")
    form.get_by_role("button", name="Submit").click()
    page.get_by_text(f"promote: version {version} is champion").first.wait_for()
    assert platform.ended(flow_run).state_name == "Completed"
    _require_champion(platform, version, champion)
    _require_audit(platform, version, "Dr B", "looked at every page")
    _inferred(platform, before)


def test_review_in_mlflow_takes_effect_and_starts_inference_once(
    champion: int, mlflow_pages: MlflowPages, platform: Platform
) -> None:
    version, before = _another_candidate(platform, champion), len(platform.runs_of("infer"))
    page, model = mlflow_pages.page, platform.settings.model_name
    mlflow_pages.version(model, version)
    mlflow_pages.add_tag("review.decision", "approve")
    mlflow_pages.add_tag("review.reviewer", "Dr C")
    mlflow_pages.add_tag("review.comment", "figures and pages seen")
    mlflow_pages.show_tag("review.reviewer")
    keep_picture(page, "mlflow-review-tags")
    form = mlflow_pages.alias_form()
    form.get_by_role("combobox").fill("approved")
    form.get_by_role("combobox").press("Enter")
    keep_picture(page, "mlflow-alias")
    form.get_by_role("button", name="Save aliases").click()
    form.wait_for(state="hidden")
    platform.run("reconcile")
    registry = platform.workspace.registry
    wait(lambda: registry.get_alias("champion") == version, 120, "the review has no effect")
    _inferred(platform, before)
    platform.run("reconcile")
    assert len(platform.runs_of("infer")) == before + 1
    page.reload()
    mlflow_pages.show_tag("review.decision")
    page.get_by_role("cell", name="promoted", exact=True).wait_for()
    keep_picture(page, "mlflow-decided")
    _require_champion(platform, version, champion)
    _require_audit(platform, version, "Dr C", "figures and pages seen")


def _add_new_case(platform: Platform) -> None:
    """A CT without a mask, as it comes from the scanner: delivered, ingested, prepared."""
    platform.deliver(NEW_CASE, "NEW", mask=False)
    platform.run("ingest")
    wait(lambda: platform.states(NEW_CASE) == {ScanState.PREPARED}, 240, "the new case is not prepared")


def _another_candidate(platform: Platform, champion: int) -> int:
    """The champion's network as a new candidate."""
    version = platform.register_again(champion)
    platform.workspace.registry.set_alias("candidate", version)
    return version


def _inferred(platform: Platform, before: int) -> None:
    """Wait until inference was started once more and is done."""
    runs = wait(lambda: platform.runs_of("infer")[: -before or None], 120, "inference does not start")
    assert [platform.ended(run.id).state_name for run in runs] == ["Completed"]


def _require_champion(platform: Platform, version: int, previous: int) -> None:
    aliases = platform.workspace.registry.aliases()
    assert (aliases["champion"], aliases["previous"]) == (version, previous)
    assert version not in (aliases.get("candidate"), aliases.get("approved"))


def _require_audit(platform: Platform, version: int, reviewer: str, comment: str) -> None:
    row = platform.catalog.audits(platform.settings.model_name)[-1]
    assert (row.action, row.version, row.reviewer, row.comment) == ("promote", version, reviewer, comment)


def _look_at_case_page(pages: PrefectPages, address: str) -> None:
    """Open the signed link; the page has unpacked the CT and drawn a grey picture of it."""
    page = pages.page.context.new_page()
    page.goto(address)
    page.wait_for_selector("html[data-ready=yes]")
    greys = page.evaluate(
        """() => {
          const canvas = document.querySelector("[data-plane=axial] canvas");
          const copy = document.createElement("canvas");
          [copy.width, copy.height] = [canvas.width, canvas.height];
          const drawing = copy.getContext("2d");
          drawing.drawImage(canvas, 0, 0);
          const bytes = drawing.getImageData(0, 0, copy.width, copy.height).data;
          return new Set(bytes.filter((_, index) => index % 4 === 0)).size;
        }"""
    )
    assert greys > 20
    assert NEW_CASE in page.title() + page.locator("h1").inner_text()
    page.close()
