"""Children of a run on a real Prefect server: how many are open, who is looked at, what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun

from flows import fan_out
from retroln.settings import Settings
from tests.servers.team import OURS, PREFECT_PAGE, Team

_OPEN = 3


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "_OPEN", _OPEN)
    monkeypatch.setattr(fan_out, "_POLL_S", 0.01)


@dataclass
class Brood:
    """Children that are started as they are drawn."""

    team: Team
    started: list[FlowRun] = field(default_factory=list)

    def draw(self, number: int, state: str = "Running") -> Iterator[FlowRun]:
        deployment = self.team.deploy("child", OURS)
        for _ in range(number):
            run = self.team.start_again(deployment, state)
            self.started.append(run)
            yield run

    def open(self) -> list[FlowRun]:
        present = [self.team.client.read_flow_run(run.id) for run in self.started]
        return [run for run in present if run.state and not run.state.is_final()]


@pytest.fixture
def brood(team: Team) -> Brood:
    return Brood(team)


def _looks(at_most: int, act: Callable[[int], None]) -> Callable[[], None]:
    """What happens at the first, second, ... look at the children; too many looks are a child not seen."""
    number = count()

    def look() -> None:
        index = next(number)
        assert index < at_most, "nobody sees what has become of the children"
        act(index)

    return look


def test_one_is_started_as_one_ends_and_all_are_returned_in_their_order(
    brood: Brood, settings: Settings
) -> None:
    seen_open = []

    def end_the_newest_at_every_other_look(look: int) -> None:
        opened = brood.open()
        if look % 2 == 0 and opened:
            seen_open.append(len(opened))
            brood.team.set(opened[-1].id, "Completed")

    ended = fan_out.wait_for(brood.draw(6), settings, _looks(40, end_the_newest_at_every_other_look))
    assert [run.id for run in ended] == [run.id for run in brood.started]
    assert {run.state_name for run in ended} == {"Completed"}
    assert seen_open == [_OPEN, _OPEN, _OPEN, _OPEN, 2, 1], "more were open, or a place stayed free"


def test_a_stuck_child_is_given_to_another_while_those_before_it_run(
    brood: Brood, settings: Settings
) -> None:
    soon = settings.model_copy(update={"max_pending_s": 1e-9})

    def act(_: int) -> None:
        _, stuck = brood.started
        if brood.team.state(stuck) == "Scheduled":
            for run in brood.started:
                brood.team.set(run.id, "Completed")

    children = [*brood.draw(1), *brood.draw(1, "Pending")]
    ended = fan_out.wait_for(children, soon, _looks(20, act))
    assert [run.state_name for run in ended] == ["Completed", "Completed"]


def test_a_parent_that_is_ended_cancels_who_is_open_and_starts_no_more(
    brood: Brood, settings: Settings
) -> None:
    def act(look: int) -> None:
        if look == 0:
            brood.team.set(brood.started[0].id, "Completed")
        else:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fan_out.wait_for(brood.draw(9), settings, _looks(3, act))
    states = [brood.team.state(run) for run in brood.started]
    assert states == ["Completed", "Cancelling", "Cancelling"]


def test_a_start_that_fails_cancels_who_is_open(brood: Brood, settings: Settings) -> None:
    def two_and_no_more() -> Iterator[FlowRun]:
        yield from brood.draw(2)
        raise ConnectionError("the server is away")

    with pytest.raises(ConnectionError):
        fan_out.wait_for(two_and_no_more(), settings)
    assert [brood.team.state(run) for run in brood.started] == ["Cancelling", "Cancelling"]


def test_a_child_that_somebody_deleted_is_waited_for_no_longer(brood: Brood, settings: Settings) -> None:
    def act(_: int) -> None:
        brood.team.client.delete_flow_run(brood.started[0].id)

    (ended,) = fan_out.wait_for(brood.draw(1), settings, _looks(2, lambda i: None if i else act(i)))
    assert ended.id == brood.started[0].id
    assert not (ended.state and ended.state.is_final())


def test_children_beyond_a_page_of_the_server_are_not_taken_for_deleted(
    brood: Brood, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fan_out, "_OPEN", PREFECT_PAGE + 2)

    def act(_: int) -> None:
        for run in brood.open():
            brood.team.set(run.id, "Completed")

    ended = fan_out.wait_for(brood.draw(PREFECT_PAGE + 2), settings, _looks(5, act))
    assert [run.state_name for run in ended] == ["Completed"] * (PREFECT_PAGE + 2)


def test_under_one_key_a_child_starts_once(team: Team) -> None:
    team.deploy("prepare-shard", OURS)

    def start(key: str, scan: int) -> UUID:
        return fan_out.start("prepare-shard", {"run_id": 1, "scan_ids": [scan]}, f"scan {scan}", key).id

    first = start("1-0", 1)
    assert start("1-0", 1) == first
    assert len({first, start("1-0", 2), start("1-1", 1)}) == 3


def test_shards_carry_the_tag_of_their_deployment(team: Team) -> None:
    team.deploy("infer-shard", [*OURS, "shard"])
    child = fan_out.start("infer-shard", {"run_id": 1, "scan_ids": [1]}, "a shard", "2-0")
    assert set(OURS) <= set(team.client.read_flow_run(child.id).tags)
