"""A real supervisord with programs that end as they are told and that do not, and one that hangs itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.stack import lifecycle
from infra.stack import supervisor as module
from infra.stack.__main__ import main
from infra.stack.plan import Stack
from infra.stack.programs import Program
from infra.stack.supervisor import Supervisor
from infra.worker import children_of, is_running
from tests.stack.driver import wait

_SLEEPER = Program("worker-sleeper", ["sleep", "600"])
_DEAF_COMMAND = ["sh", "-c", "trap '' TERM; while :; do sleep 600; done"]
_DEAF = Program("worker-deaf", _DEAF_COMMAND, grace_s=2)
_STUBBORN = Program("worker-deaf", _DEAF_COMMAND, grace_s=600)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """It runs two programs of which one takes no notice of SIGTERM."""
    running = Supervisor(tmp_path)
    running.configure([_SLEEPER, _DEAF])
    running.start("worker-sleeper", "worker-deaf")
    pid = _pid(running)
    yield running
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    if running.is_running():
        running.shut_down()


def _pid(supervisor: Supervisor) -> int:
    return int((supervisor.home / "supervisord.pid").read_text())


def _everyone(supervisor: Supervisor) -> list[int]:
    programs = [int(info["pid"]) for info in supervisor.states().values()]
    assert len(programs) == 2
    return [_pid(supervisor), *programs]


def test_it_ends_with_all_its_programs(supervisor: Supervisor) -> None:
    everyone = _everyone(supervisor)
    assert all(map(is_running, everyone))
    supervisor.shut_down()
    assert not any(map(is_running, everyone))
    assert not supervisor.is_running()


def test_one_that_hangs_is_killed_with_its_programs_and_said_so(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.5)
    monkeypatch.setattr(module, "_STOP_S", 0.5)
    everyone = _everyone(supervisor)
    os.kill(everyone[0], signal.SIGSTOP)
    assert supervisor.is_running(), "what says nothing has not gone"
    with pytest.raises(RuntimeError, match=r"did not end within .* was killed with all its programs"):
        supervisor.shut_down()
    assert not any(map(is_running, everyone))
    assert not supervisor.is_running()


def test_a_program_that_does_not_stop_in_time_is_named(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_S", 0)
    with pytest.raises(RuntimeError, match="worker-deaf did not stop within 0 s"):
        supervisor.stop("worker-deaf")
    monkeypatch.undo()
    wait(lambda: supervisor.states()["worker-deaf"]["statename"] == "STOPPED", 30, "it is not killed")


def test_programs_stop_alone(supervisor: Supervisor) -> None:
    supervisor.stop("worker-sleeper")
    states = {name: info["statename"] for name, info in supervisor.states().items()}
    assert states == {"worker-sleeper": "STOPPED", "worker-deaf": "RUNNING"}


def test_a_program_that_starts_again_and_again_stays_down_once_stopped(supervisor: Supervisor) -> None:
    supervisor.configure([_SLEEPER, _DEAF, Program("worker-broken", ["false"])])
    with pytest.raises(RuntimeError, match="worker-broken does not start"):
        supervisor.start("worker-broken")
    wait(lambda: supervisor.states()["worker-broken"]["statename"] == "BACKOFF", 30, "it is not left alone")
    supervisor.stop("worker-broken")
    assert supervisor.states()["worker-broken"]["statename"] == "STOPPED"


class TestStopping:
    """What was told to end, by `make stack-down` that was interrupted or by the machine, and has not yet."""

    @pytest.fixture
    def stopping(self, supervisor: Supervisor) -> Supervisor:
        os.kill(_pid(supervisor), signal.SIGTERM)
        wait(lambda: supervisor.is_stopping() or not supervisor.is_running(), 30, "it is not stopping")
        return supervisor

    @pytest.fixture
    def stubborn(self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
        """One of its programs would take ten minutes."""
        supervisor.configure([_SLEEPER, _STUBBORN])
        supervisor.start("worker-deaf")
        monkeypatch.setattr(module, "_STOP_S", 0.5)
        os.kill(_pid(supervisor), signal.SIGTERM)
        wait(supervisor.is_stopping, 10, "it is not stopping")
        return supervisor

    def test_it_counts_as_running_and_says_what_it_does(self, stubborn: Supervisor) -> None:
        assert stubborn.is_running()
        with pytest.raises(RuntimeError, match=r"told to end and stops its programs.*make stack-down"):
            stubborn.states()
        with pytest.raises(RuntimeError, match="was killed"):
            stubborn.shut_down()

    def test_shutting_it_down_again_waits_for_its_end(self, stopping: Supervisor) -> None:
        pid = _pid(stopping)
        stopping.shut_down()
        assert not is_running(pid)
        assert not stopping.is_running()
        assert not stopping.is_stopping()

    def test_shutting_down_what_has_ended_meanwhile_is_no_error(self, stopping: Supervisor) -> None:
        stopping.wait_for_end(stopping.pid())
        stopping.shut_down()

    def test_a_process_that_has_got_its_number_is_left_alone(
        self, stopping: Supervisor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stopping.wait_for_end(stopping.pid())
        monkeypatch.setattr(module, "_STOP_S", 0)
        monkeypatch.setattr(module, "_kill", lambda pid: pytest.fail(f"{pid} is no supervisord"))
        (stopping.home / "supervisord.pid").write_text(str(os.getpid()))
        stopping.shut_down()

    def test_shutting_down_one_that_does_not_end_kills_it_and_its_programs(
        self, stubborn: Supervisor
    ) -> None:
        everyone = [_pid(stubborn), *children_of(_pid(stubborn))]
        with pytest.raises(RuntimeError, match=r"did not end within .* was killed with all its programs"):
            stubborn.shut_down()
        assert not any(map(is_running, everyone))

    def test_a_start_waits_for_its_end(self, stubborn: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
        pid, said = _pid(stubborn), list[str]()
        monkeypatch.setattr(module, "_STOP_S", 60)

        def tell(words: str) -> None:
            said.append(words)
            for program in children_of(pid):
                os.kill(program, signal.SIGKILL)

        def start(_: object) -> str:
            assert not is_running(pid)
            stubborn.configure([_SLEEPER])
            raise RuntimeError("it is started")

        monkeypatch.setattr(lifecycle.postgres, "init_cluster", start)
        with pytest.raises(RuntimeError, match="it is started"):
            lifecycle.up(Stack(stubborn.home, 14200), tell=tell)
        assert said == ["waiting for the end of what is stopping"]
        assert _pid(stubborn) != pid

    def test_a_start_does_not_wait_for_ever(self, stubborn: Supervisor) -> None:
        with pytest.raises(
            RuntimeError, match=r"still waits for its programs after .*`make stack-down` kills"
        ):
            lifecycle.up(Stack(stubborn.home, 14200), tell=lambda _: None)
        with pytest.raises(RuntimeError, match="was killed"):
            stubborn.shut_down()

    def test_commands_say_so_in_one_line(self, stubborn: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RETROLN_STACK_HOME", str(stubborn.home))
        for command, words in {
            "status": "told to end and stops its programs",
            "rotate": "does not run, or is stopping",
            "down": "was killed with all its programs",
        }.items():
            result = CliRunner().invoke(main, [command])
            assert result.exit_code == 1
            assert result.output.startswith("error: "), result.output
            assert words in result.output
