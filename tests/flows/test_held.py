"""A run's page shows each case that waits for a look at its landmarks, with numbers, picture and commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows.ingest import ingest
from flows.prepare import prepare
from retroln.imaging.phantom import PhantomSpec, make_phantom, shifted_names
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace
from tasks import held
from tasks.policy import using
from tests.way import write_case

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """What a person's browser would ask the server."""
    with get_client(sync_client=True) as opened:
        yield opened


def _artifacts(client: SyncPrefectClient, state: Any) -> dict[str, str]:
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    return {str(one.key): str(one.data) for one in client.read_artifacts(artifact_filter=of_run)}


def _run(flow: Any, settings: Settings) -> Any:
    with using(settings):
        return flow(return_state=True)


def _deliver_shifted(folder: Path, *cases: str) -> None:
    shifted = make_phantom(PhantomSpec(7, (5.0, 5.0, 5.0), node_free=True, level_names=shifted_names(-1)))
    for case in cases:
        write_case(folder / "source" / f"P-{case}" / case, shifted, ("ct", "vertebrae"))


def test_each_held_case_has_an_artifact_with_numbers_picture_and_commands(
    settings: Settings, tmp_path: Path, client: SyncPrefectClient
) -> None:
    _deliver_shifted(tmp_path, "LN_001")
    _run(ingest, settings)
    state = _run(prepare, settings)
    assert state.name == "Quarantined"
    shown = _artifacts(client, state)[held.artifact_key("LN_001")]
    assert "## LN_001: numbering_doubtful" in shown
    assert "| L2 | " in shown
    assert "retroln review accept LN_001" in shown
    catalog = open_workspace(settings).catalog
    picture = catalog.landmarks_of(catalog.current_scan("LN_001").scan_id).picture_key
    assert f"(file://{tmp_path}/store/{picture})" in shown
    assert "![" not in shown  # a browser shows no file inside a page
    again = _run(prepare, settings)
    assert held.artifact_key("LN_001") not in _artifacts(client, again)  # shown once, listed in each run
    assert "LN_001" in _artifacts(client, again)["prepare-held"]


def test_a_page_is_to_be_read(
    settings: Settings, tmp_path: Path, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_CASES", 1)
    _deliver_shifted(tmp_path, "A", "B", "C")
    _run(ingest, settings)
    shown = _artifacts(client, _run(prepare, settings))
    assert sum(key.startswith("review-") for key in shown) == 2
    assert shown["review-more"].startswith("2 more cases")


def test_keys_are_what_prefect_allows_and_tell_cases_apart() -> None:
    keys = {held.artifact_key(case) for case in ("LN_001", "ln-001", "LN.001", "Ä", "x" * 100)}
    assert len(keys) == 5
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for key in keys)
