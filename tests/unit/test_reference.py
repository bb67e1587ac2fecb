"""The reference pages say what the code does: every setting, deployment and event, and none that is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from retroln.settings import Settings, TrainSpec

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
# read by the stack, the workers and the doctor, not by Settings; each must occur in infra/ or retroln/
OTHERS = {
    "RETROLN_ENV_FILE",
    "RETROLN_HOME",
    "RETROLN_STACK_HOME",
    "RETROLN_STACK_PORT",
    "RETROLN_STACK_POLL_S",
    "RETROLN_STAND_IN_WEIGHTS",
}


def _fields(model: type[BaseModel], prefix: str = "RETROLN_") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}", field


SETTINGS = dict(_fields(Settings))


def _rows(page: Path) -> dict[str, list[str]]:
    """Cells of the page's tables by what their first cell names."""
    lines = re.findall(r"^\| `([^`]+)` \| (.*) \|$", page.read_text(), re.MULTILINE)
    cells = {name: re.split(r"(?<!\\)\|", rest) for name, rest in lines}
    return {name: [cell.strip().replace("\\|", "|") for cell in row] for name, row in cells.items()}


def _example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert all(line.startswith("#") or not line for line in lines), "an example sets nothing by itself"
    return dict(re.findall(r"^# (RETROLN_\w+)=(.*)$", "\n".join(lines), re.MULTILINE))


def test_the_settings_page_lists_every_setting_and_no_other() -> None:
    listed = {name for name in _rows(REFERENCE / "settings.md") if name.startswith("RETROLN_")}
    assert listed == set(SETTINGS) | OTHERS


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_page_shows_the_default(name: str) -> None:
    shown = _rows(REFERENCE / "settings.md")[name][0].strip("`")
    default = SETTINGS[name].default
    if isinstance(default, float | int):
        assert float(shown) == default
    else:
        assert shown == ("none" if default is None else str(default))


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_variables_are_read_somewhere(name: str) -> None:
    sources = [*(ROOT / "infra").rglob("*.py"), *(ROOT / "retroln").rglob("*.py")]
    assert any(name in path.read_text() for path in sources)


def test_the_example_lists_every_setting_and_no_other() -> None:
    assert set(_example()) == set(SETTINGS)


def test_the_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings()
    for name, value in _example().items():
        if SETTINGS[name].default is not None:
            monkeypatch.setenv(name, value)
    assert Settings() == before


def test_every_part_of_a_training_is_described() -> None:
    assert set(TrainSpec.model_fields) <= set(_rows(REFERENCE / "settings.md"))


def _deployments() -> list[dict[str, Any]]:
    return list(yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"])


def test_every_deployment_is_described_with_its_place_and_times() -> None:
    rows = _rows(REFERENCE / "deployments.md")
    names = {entry["name"] for entry in _deployments()}
    assert names
    assert {name for name in rows if name in names} == names
    for entry in _deployments():
        pool, starts = rows[entry["name"]][:2]
        place = entry["work_pool"]
        assert pool == f"`{place['name']}` / `{place['work_queue_name']}`"
        wanted = [schedule["cron"] for schedule in entry.get("schedules", [])]
        wanted += [name for trigger in entry.get("triggers", []) for name in trigger["expect"]]
        assert re.findall(r"`([^`]+)`", starts) == wanted
        limit = entry.get("concurrency_limit")
        assert rows[entry["name"]][2] == (f"{limit['limit']}, {limit['collision_strategy']}" if limit else "")


def test_every_event_is_described() -> None:
    emitted = set(re.findall(r'"(retroln\.\w+\.\w+)"', (ROOT / "tasks" / "events.py").read_text()))
    assert emitted
    assert set(_rows(REFERENCE / "events.md")) & emitted == emitted
    assert {name for name in _rows(REFERENCE / "events.md") if name.count(".") == 2} == emitted


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    wanted = [str(page) for page in pages if page.parts[0] != "decisions" and page.name != "README.md"]
    assert [page for page in wanted if f"({page})" not in index] == []


def test_every_decision_is_in_its_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    decisions = sorted(folder.glob("0*.md"))
    assert decisions
    for path in decisions:
        title = path.read_text().splitlines()[0].removeprefix("# ").replace(". ", " ", 1)
        assert f"- [{title}]({path.name})" in index


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md")), ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (ROOT / page).parent.joinpath(target).exists()] == []
