"""supervisord keeps the stack's programs running; here is its configuration and how to speak to it."""

from __future__ import annotations

import configparser
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from infra.postgres import write_secret
from infra.stack.programs import Program
from infra.worker import children_of, is_running

_START_S = 180
_READY_S = 300
_ANSWER_S = 30  # no answer takes longer than a program takes to start
_UPDATE_S = 600  # changed programs are stopped one after the other, each within its grace
_STOP_S = 90  # the longest grace, of a training that writes its checkpoint, and some more
_SHUTDOWN_STATE, _NOT_RUNNING = 6, 70  # faults, https://supervisord.org/api.html
_LONGEST_SOCKET = 99  # of the system's 107 bytes; supervisord puts its process id behind the name


def is_worker(name: str) -> bool:
    """Whether a program works for the servers, and so has to end before them and start after them."""
    return name.startswith(("worker-", "bridge"))


class StoppingError(RuntimeError):
    """supervisord stops its programs and then ends; until then it takes no order."""


class Supervisor:
    """The supervisord of one stack folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._config = home / "supervisord.conf"
        self._socket = home / "supervisor.sock"

    def configure(self, programs: Iterable[Program]) -> None:
        """Write the configuration (private: it holds the programs' environment) and load it if running.

        Raises:
            RuntimeError: the folder's path is too long for a socket.
        """
        self._require_short()
        (self.home / "logs").mkdir(exist_ok=True)
        write_secret(self._config, _configuration(self.home, self._socket, programs))
        if self.is_running():
            self._control("update")
        else:
            subprocess.run([_tool("supervisord"), "-c", str(self._config)], check=True)
            self._wait()

    def _require_short(self) -> None:
        if len(os.fsencode(self._socket)) > _LONGEST_SOCKET:
            raise RuntimeError(
                f"{self._socket} is too long a path for a socket (at most {_LONGEST_SOCKET} bytes);"
                " choose a shorter RETROLN_STACK_HOME"
            )

    def is_running(self) -> bool:
        """Whether supervisord runs; one that is stopping or says nothing does, with programs of its own."""
        try:
            with self._speak() as proxy:
                return bool(proxy.supervisor.getState()["statename"] == "RUNNING")
        except (StoppingError, TimeoutError):
            return True
        except OSError:
            return False

    def is_stopping(self) -> bool:
        """Whether supervisord was told to end, and waits for its programs."""
        try:
            with self._speak() as proxy:
                proxy.supervisor.getState()
        except StoppingError:
            return True
        except OSError:
            return False
        return False

    def wait_for_end(self, pid: int | None) -> None:
        """Wait until a supervisord that is stopping has ended.

        Args:
            pid: its `pid` of before it was seen to be stopping: it takes the number away before it ends.

        Raises:
            RuntimeError: it has not within the longest grace.
        """
        if pid and not _within(_STOP_S, lambda: not is_running(pid)):
            raise RuntimeError(
                f"supervisord of {self.home} was told to end and still waits for its programs after"
                f" {_STOP_S} s; `make stack-down` kills them, {self.home}/logs may say why"
            )

    def start(self, *names: str) -> None:
        """Start programs that are not running and wait until they stay up for a second.

        Raises:
            RuntimeError: a program ends again and again; the end of its log is shown.
        """
        with self._speak() as proxy:
            for name in names:
                if proxy.supervisor.getProcessInfo(name)["statename"] in ("RUNNING", "STARTING"):
                    continue
                try:
                    proxy.supervisor.startProcess(name)
                except Fault as error:
                    raise RuntimeError(
                        f"{name} does not start ({error.faultString}): {self.log_end(name)}"
                    ) from error

    def wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a program that was started is ready for work.

        Raises:
            RuntimeError: it has given up, or is not ready after five minutes; the end of its log is shown.
        """
        deadline = time.monotonic() + _READY_S
        while not ready():
            if time.monotonic() > deadline or self.states()[name]["statename"] in ("FATAL", "EXITED"):
                raise RuntimeError(f"{name} does not answer; the end of its log: {self.log_end(name)}")
            time.sleep(0.2)

    def stop(self, *names: str) -> None:
        """Stop programs orderly and side by side; those that are down stay so.

        Raises:
            RuntimeError: some still run after the longest grace.
        """
        with self._speak() as proxy:
            for name in names:
                try:
                    proxy.supervisor.stopProcess(name, False)
                except Fault as error:
                    if error.faultCode != _NOT_RUNNING:
                        raise
        if not _within(_STOP_S, lambda: not self._up(names)):
            raise RuntimeError(f"{', '.join(self._up(names))} did not stop within {_STOP_S} s")

    def _up(self, names: Iterable[str]) -> list[str]:
        states = self.states()
        return [name for name in names if states[name]["pid"]]

    def states(self) -> dict[str, dict[str, Any]]:
        """What supervisord knows of each program, by name."""
        with self._speak() as proxy:
            return {info["name"]: info for info in proxy.supervisor.getAllProcessInfo()}

    def shut_down(self) -> None:
        """Stop every program and supervisord itself; returns when they are gone.

        Raises:
            RuntimeError: they did not end within their graces and were killed.
        """
        pid = self.pid()
        if pid is None:
            return
        with suppress(RuntimeError, OSError):  # whether it ends counts, not what it answers
            # before the servers, to which they still have something to tell
            self.stop(*filter(is_worker, self.states()))
        with suppress(StoppingError, OSError), self._speak() as proxy:
            proxy.supervisor.shutdown()
        if not _within(_STOP_S, lambda: not is_running(pid)):
            _kill(pid)
            raise RuntimeError(
                f"supervisord did not end within {_STOP_S} s and was killed with all its programs;"
                f" see {self.home}/logs. The next start goes on from what they had written"
            )

    def pid(self) -> int | None:
        """Process id of this folder's supervisord; None if it has ended, whoever has its number now."""
        try:
            pid = int((self.home / "supervisord.pid").read_text("utf-8"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self._config) in command.split(b"\0") else None

    def log_end(self, name: str) -> str:
        """The last lines that a program wrote."""
        path = self.home / "logs" / f"{name}.log"
        return path.read_text("utf-8", "replace")[-1200:] if path.exists() else ""

    @contextmanager
    def _speak(self) -> Iterator[ServerProxy]:
        """A call raises `StoppingError`, `TimeoutError` without an answer, `OSError` if nobody listens."""
        from supervisor.xmlrpc import SupervisorTransport, UnixStreamHTTPConnection

        class Connection(UnixStreamHTTPConnection):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                self.sock.settimeout(_ANSWER_S)

        connection = Connection("localhost")
        connection.socketfile = str(self._socket)
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        transport._get_connection = lambda: connection
        try:
            yield ServerProxy("http://localhost", transport=transport)
        except TimeoutError as error:
            raise TimeoutError(
                f"supervisord of {self.home} does not answer; `make stack-down` ends it"
            ) from error
        except Fault as error:
            if error.faultCode != _SHUTDOWN_STATE:
                raise
            raise StoppingError(
                f"supervisord of {self.home} was told to end and stops its programs;"
                f" wait for it, or run `make stack-down`, which waits {_STOP_S} s and then kills them"
            ) from error
        finally:
            transport.close()

    def _control(self, *words: str) -> None:
        command = [_tool("supervisorctl"), "-c", str(self._config), *words]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_UPDATE_S)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"supervisord does not answer; `make stack-down` ends it, {self.home}/logs may say why"
            ) from error

    def _wait(self) -> None:
        if not _within(_START_S, self.is_running):
            raise RuntimeError(f"supervisord does not answer; look at {self.home}/logs/supervisord.log")


def _within(limit_s: float, done: Callable[[], bool]) -> bool:
    """Wait until `done`; False if it is not within `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _kill(supervisord: int) -> None:
    """Kill it before its programs, which it would start again; each leads a process group of its own."""
    programs = children_of(supervisord)
    with suppress(ProcessLookupError):
        os.kill(supervisord, signal.SIGKILL)
    for program in programs:
        with suppress(ProcessLookupError):
            os.killpg(program, signal.SIGKILL)
    _within(_START_S, lambda: not any(map(is_running, [supervisord, *programs])))


def _configuration(home: Path, socket: Path, programs: Iterable[Program]) -> str:
    parser = configparser.RawConfigParser()
    logs = home / "logs"
    parser["supervisord"] = {
        "logfile": f"{logs}/supervisord.log",
        "pidfile": f"{home}/supervisord.pid",
        "childlogdir": str(logs),
        "umask": "077",
        "minfds": "1024",
    }
    parser["unix_http_server"] = {"file": str(socket), "chmod": "0700"}
    parser["supervisorctl"] = {"serverurl": f"unix://{socket}"}
    parser["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    for program in programs:
        parser[f"program:{program.name}"] = _section(program, logs)
    return _text(parser)


def _section(program: Program, logs: Path) -> dict[str, str]:
    quoted = ",".join(f'{name}="{_escaped(value)}"' for name, value in program.environment.items())
    section = {
        "command": " ".join(_word(word) for word in program.command),
        "directory": str(program.directory or Path.cwd()),
        "environment": quoted,
        "autostart": "false",
        "autorestart": "true",
        "startsecs": "1",
        "startretries": "5",
        "stopsignal": program.stop,
        "stopwaitsecs": str(program.grace_s),
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": f"{logs}/{program.name}.log",
        "stdout_logfile_maxbytes": "20MB",
        "stdout_logfile_backups": "3",
    }
    return section | ({"user": program.user} if program.user else {})


def _escaped(value: str) -> str:
    return value.replace("%", "%%").replace('"', '\\"')


def _word(word: str) -> str:
    return f'"{word.replace("%", "%%")}"' if not word or " " in word else word.replace("%", "%%")


def _text(parser: configparser.RawConfigParser) -> str:
    from io import StringIO

    stream = StringIO()
    parser.write(stream)
    return stream.getvalue()


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
