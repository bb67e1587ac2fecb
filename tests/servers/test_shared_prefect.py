"""A Prefect server that others use, too: our automations, our sweep and our doctor keep to our runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.automations import Automation
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.settings.models.flows import FlowsSettings
from prefect.states import StateType

from flows.sweep import sweep
from infra.ports import free_ports
from infra.stack.deploy import make_automations, slowest_heartbeat_s
from retroln.cli.finding import Finding
from retroln.cli.heartbeat import FAILING, OVER_AGE, UNSET_S, VARIABLE, ZOMBIE
from retroln.cli.prefect_api import use_prefect
from retroln.settings import Settings
from tests.servers.team import OURS, PREFECT_PAGE, THEIRS, Team
from tests.stack.driver import wait
from tests.stack.sink import Sink, listening

ROOT = Path(__file__).parents[2]
_AT_ONCE_H = 1e-9
_SILENT_S = 10  # the least that Prefect takes


@pytest.fixture
def sink() -> Iterator[Sink]:
    with listening(free_ports(1)) as open_sink:
        yield open_sink


@pytest.fixture(autouse=True)
def no_automations(team: Team) -> Iterator[None]:
    """A test's automations would act on the runs of the next."""
    yield
    for name in (ZOMBIE, FAILING, OVER_AGE):
        _delete(team, name)


def _delete(team: Team, name: str) -> None:
    for automation in team.client.read_automations_by_name(name):
        team.client.delete_automation(automation.id)


def _earlier(team: Team) -> None:
    """The automation as it was before it looked at our runs alone; two deploys at once made it twice."""
    _delete(team, ZOMBIE)
    for _ in range(2):
        Automation(
            name=ZOMBIE,
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.*"},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=_SILENT_S),
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat")],
        ).create()


def _fall_silent(team: Team) -> tuple[Any, Any]:
    """A run of theirs and, later, one of ours say once that they live."""
    theirs, ours = team.start(THEIRS), team.start(OURS)
    for run in (theirs, ours):
        team.beat(run)
    return theirs, ours


def test_the_earlier_automation_took_all_and_a_deploy_limits_it_to_ours(
    team: Team, settings: Settings
) -> None:
    _earlier(team)
    before, _ = _fall_silent(team)
    wait(lambda: team.state(before) == "Crashed", 180, "the earlier automation does not work here")
    make_automations(settings, _SILENT_S)
    theirs, ours = _fall_silent(team)
    wait(lambda: team.state(ours) == "Crashed", 180, "nobody sees that our run is dead")
    assert team.state(theirs) == "Running"
    assert len(team.client.read_automations_by_name(ZOMBIE)) == 1


def test_one_that_died_before_its_first_heartbeat_is_seen(team: Team, settings: Settings) -> None:
    make_automations(settings, _SILENT_S)
    theirs, ours, again = team.start(THEIRS), team.start(OURS), team.start(OURS)
    team.set(again.id, "Retrying")
    for run in (ours, again):
        wait(lambda run=run: team.state(run) == "Crashed", 180, "nobody sees that our run is dead")
    assert team.state(theirs) == "Running"


def test_one_that_waits_for_a_person_is_not_dead(team: Team, settings: Settings) -> None:
    make_automations(settings, _SILENT_S)
    waiting, dead = team.start(OURS), team.start(OURS)
    team.beat(waiting)
    team.set(waiting.id, "Suspended")
    wait(lambda: team.state(dead) == "Crashed", 180, "nobody sees that our run is dead")
    time.sleep(_SILENT_S)
    assert team.state(waiting) == "Suspended"


def test_only_our_failing_and_over_age_runs_are_told(team: Team, settings: Settings, sink: Sink) -> None:
    told = {"notify_url": sink.address, "max_run_h": _SILENT_S / 3600}
    make_automations(Settings(**{**settings.model_dump(), **told}), 600)
    for tags, whose in ((THEIRS, "theirs"), (OURS, "ours")):
        team.set(team.start(tags).id, "Failed", f"{whose} failed")
        team.set(team.start(tags).id, "Running", f"{whose} runs for ever")
    for text in ("ours failed", "ours runs for ever"):
        wait(lambda text=text: any(text in body for body in sink.bodies), 180, f"nobody is told: {text}")
    assert [body for body in sink.bodies if "theirs" in body] == []


class TestSweep:
    def test_ours_are_closed_to_the_last_page_and_theirs_stay(self, team: Team, settings: Settings) -> None:
        deployment, other = team.deploy("many", OURS), team.deploy("many-others", THEIRS)
        ours = [team.start_again(deployment) for _ in range(PREFECT_PAGE + 3)]
        theirs = [team.start_again(other), team.start_again(other, "Pending")]
        sweep(settings.model_copy(update={"max_run_h": _AT_ONCE_H, "max_pending_s": _AT_ONCE_H}))
        assert {team.state(run) for run in ours} == {"Crashed"}
        assert [team.state(run) for run in theirs] == ["Running", "Pending"]

    def test_a_run_that_nobody_started_goes_back_to_its_queue(self, team: Team, settings: Settings) -> None:
        ours, theirs = team.start(OURS, "Pending"), team.start(THEIRS, "Pending")
        sweep(settings.model_copy(update={"max_pending_s": _AT_ONCE_H}))
        assert [team.state(run) for run in (ours, theirs)] == ["Scheduled", "Pending"]

    def test_the_silence_it_bears_follows_the_heartbeat_of_the_deployment(
        self, team: Team, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("flows.sweep._SILENT_S", 0)
        monkeypatch.setattr("flows.sweep.silence_s", lambda beat: 0 if beat == 30 else 3 * beat)
        brisk = team.start_again(team.deploy("brisk", OURS, heartbeat_s=30))
        slow = team.start_again(team.deploy("slow", OURS, heartbeat_s=600))
        unset = team.start_again(team.deploy("unset", OURS, heartbeat_s=None))
        sweep(settings)
        assert [team.state(run) for run in (brisk, slow, unset)] == ["Crashed", "Running", "Running"]


def test_the_heartbeat_of_who_sets_none_is_prefects_own() -> None:
    assert FlowsSettings.model_fields["heartbeat_frequency"].default == UNSET_S


class TestDoctor:
    """`use_prefect`, of which the finding `heartbeat` is looked at."""

    @pytest.fixture
    def look(self, team: Team, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Finding]:
        """What it says of a server on which everything of prefect.yaml was deployed well."""
        monkeypatch.setenv("RETROLN_HOME", str(ROOT))
        for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
            team.deploy(entry["name"], OURS, entrypoint=entry["entrypoint"])
            team.deploy(f"{entry['name']}-of-others", THEIRS, heartbeat_s=None)
        make_automations(settings, 90)

        def find() -> Finding:
            (found,) = [finding for finding in use_prefect(settings) if finding.name == "heartbeat"]
            return found

        return find

    def test_well(self, look: Callable[[], Finding]) -> None:
        found = look()
        assert found.well, found
        assert "every 30 s; a run of ours that is silent for 90 s is Crashed" in found.seen

    def test_less_silence_than_three_heartbeats(
        self, team: Team, look: Callable[[], Finding], settings: Settings
    ) -> None:
        team.deploy("train-fold", OURS, heartbeat_s=180)
        found = look()
        assert not found.well
        assert "runs that live are crashed" in found.seen
        assert "expected: 540 s of silence, for a heartbeat every 180 s; got: 90 s" in found.seen
        assert "infra.stack deploy" in found.fix
        make_automations(settings, 540)
        assert look().well

    def test_an_automation_is_missing(self, team: Team, look: Callable[[], Finding]) -> None:
        _delete(team, FAILING)
        found = look()
        assert not found.well
        assert f"no automation named {FAILING}" in found.seen
        assert "infra.stack deploy" in found.fix

    def test_the_earlier_automation_is_there_still(self, team: Team, look: Callable[[], Finding]) -> None:
        _earlier(team)
        found = look()
        assert not found.well
        assert f"runs of others are touched by {ZOMBIE}" in found.seen
        assert "infra.stack deploy" in found.fix

    def test_an_automation_of_ours_waits_for_a_first_heartbeat(
        self, team: Team, look: Callable[[], Finding], settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as earlier:
            earlier.setattr("infra.stack.deploy.WATCHED_FROM", {"prefect.flow-run.heartbeat"})
            make_automations(settings, 90)
        found = look()
        assert not found.well
        assert "dies before its first heartbeat" in found.seen
        assert "infra.stack deploy" in found.fix
        make_automations(settings, 90)
        assert look().well

    def test_an_automation_is_switched_off_and_a_deploy_leaves_it_so(
        self, team: Team, look: Callable[[], Finding], settings: Settings
    ) -> None:
        (automation,) = team.client.read_automations_by_name(ZOMBIE)
        team.client.pause_automation(automation.id)
        make_automations(settings, 90)
        found = look()
        assert not found.well
        assert f"switched off: {ZOMBIE}" in found.seen
        assert "Automations" in found.fix

    def test_a_deployment_of_an_earlier_version_has_no_heartbeat(
        self, team: Team, look: Callable[[], Finding]
    ) -> None:
        team.deploy("infer-shard", OURS, heartbeat_s=None)
        found = look()
        assert not found.well
        assert "deployed without a heartbeat: infer-shard" in found.seen
        assert "infra.stack deploy" in found.fix


class TestHeartbeatOfTheFile:
    """What a deploy allows follows from prefect.yaml."""

    @staticmethod
    def _file(folder: Path, *deployments: dict[str, Any]) -> Path:
        path = folder / "prefect.yaml"
        path.write_text(yaml.safe_dump({"deployments": list(deployments)}))
        return path

    @staticmethod
    def _entry(name: str, beat: str | None, tags: list[str] = OURS) -> dict[str, Any]:
        environment = {} if beat is None else {VARIABLE: beat}
        return {"name": name, "tags": tags, "work_pool": {"job_variables": {"env": environment}}}

    def test_the_slowest_counts(self, tmp_path: Path) -> None:
        path = self._file(tmp_path, self._entry("a", "30"), self._entry("b", "180"), self._entry("c", "60"))
        assert slowest_heartbeat_s(path) == 180

    @pytest.mark.parametrize(("beat", "tags"), [(None, OURS), ("30", ["data"])])
    def test_one_that_could_not_be_watched_is_refused(
        self, tmp_path: Path, beat: str | None, tags: list[str]
    ) -> None:
        path = self._file(tmp_path, self._entry("a", "30"), self._entry("b", beat, tags))
        with pytest.raises(RuntimeError, match="b lacks tag retroln or PREFECT_FLOWS_HEARTBEAT_FREQUENCY"):
            slowest_heartbeat_s(path)

    def test_of_prefect_yaml(self) -> None:
        assert slowest_heartbeat_s(ROOT / "prefect.yaml") == 30

    def test_no_worker_has_one_of_its_own(self) -> None:
        places = [ROOT / "infra" / "compose.yaml", *(ROOT / "infra" / "kubernetes").glob("*.yaml")]
        places += [ROOT / "infra" / "stack" / "programs.py", ROOT / "docs" / "howto" / "gpu-worker.md"]
        assert [path.name for path in places if VARIABLE in path.read_text()] == []
