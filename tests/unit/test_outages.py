"""A server that is away is waited for, with growing pauses, and not for ever."""

import pytest

from retroln.errors import InputError, UnavailableError
from retroln.steps import outages


class Clock:
    """Time that passes only while somebody sleeps, or as long as a call says it took."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses_s: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        self.now_s += pause_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outages, "time", clock)
    return clock


class Server:
    """Is away for a while, counted in calls."""

    def __init__(self, away: int) -> None:
        self.away, self.calls = away, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.away:
            raise UnavailableError("gone for a walk")
        return "here"


def test_a_server_that_comes_back_is_asked_until_it_answers(clock: Clock):
    server = Server(away=7)
    assert outages.riding_out(server, 180.0) == "here"
    assert clock.pauses_s == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_patience_ends_with_a_last_try(clock: Clock):
    server = Server(away=1000)
    with pytest.raises(UnavailableError, match="gone for a walk"):
        outages.riding_out(server, 20.0)
    assert clock.pauses_s == [0.5, 1.0, 2.0, 4.0, 8.0, 4.5]
    assert server.calls == 7


def test_patience_counts_from_the_first_failure_not_from_the_start(clock: Clock):
    server = Server(away=1)

    def slow() -> str:
        clock.now_s += 3600.0
        return server()

    assert outages.riding_out(slow, 1.0) == "here"


def test_without_patience_it_is_tried_once(clock: Clock):
    server = Server(away=1)
    with pytest.raises(UnavailableError):
        outages.riding_out(server, 0.0)
    assert (server.calls, clock.pauses_s) == (1, [])


def test_other_errors_are_not_waited_for(clock: Clock):
    def broken() -> None:
        raise InputError("not an image", reason="not_nifti")

    with pytest.raises(InputError):
        outages.riding_out(broken, 180.0)
    assert clock.pauses_s == []
