"""A real supervisord with programs that end as they are told and that do not, and one that hangs itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.stack import supervisor as module
from infra.stack.programs import Program
from infra.stack.supervisor import Supervisor
from infra.worker import is_running
from tests.stack.driver import wait

_SLEEPER = Program("worker-sleeper", ["sleep", "600"])
_DEAF = Program("worker-deaf", ["sh", "-c", "trap '' TERM; while :; do sleep 600; done"], grace_s=1)


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
