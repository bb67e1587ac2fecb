"""One stack for all tests of this folder: every server and worker that `make stack` starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.ports import free_ports
from infra.stack.plan import Stack
from retroln.imaging.phantom import Phantom
from retroln.settings import Settings
from tests.stack.driver import Platform

# The tests' networks are trained for two steps, so the gates must let nearly everything pass.
_LENIENT = """
RETROLN_GATES__MIN_TEST_PATIENTS=1
RETROLN_GATES__MIN_SENSITIVITY_GE10MM=0
RETROLN_GATES__MAX_FP_PER_VOLUME=1000000
RETROLN_GATES__MAX_SENSITIVITY_DROP=1
RETROLN_GATES__MAX_DICE_DROP=1
RETROLN_PROCESSES=1
RETROLN_PATIENCE_S=90
"""


def _command(stack: Stack, *words: str) -> None:
    environment = {
        **os.environ,
        "RETROLN_STACK_HOME": str(stack.home),
        "RETROLN_STACK_PORT": str(stack.first_port),
        "RETROLN_STACK_POLL_S": "2",
        "RETROLN_STACK_SILENT_S": "60",
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("RETROLN_ENV_FILE", None)
    done = subprocess.run(
        [sys.executable, "-m", "infra.stack", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A running stack in a folder of its own; `RETROLN_TEST_STACK` keeps one for the next session there."""
    kept = os.environ.get("RETROLN_TEST_STACK")
    if kept and (Path(kept) / "stack.json").exists():
        port = json.loads((Path(kept) / "stack.json").read_text())["first_port"]
        yield Stack(Path(kept), port)
        return
    home = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="retroln-stack-"))
    home.mkdir(exist_ok=True)
    home.chmod(0o711)
    made = Stack(home, free_ports(20))
    (home / "platform.env").write_text(_LENIENT)
    try:
        _command(made, "up", "--shard-workers", "2", "--webhook")
        yield made
    finally:
        if not kept:
            _command(made, "down")
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def platform(stack: Stack, phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """The stack as a user's programs see it."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    values = stack.client_environment("operator")
    monkeypatch.setenv("RETROLN_ENV_FILE", str(stack.home / "retroln.env"))
    updates = {
        PREFECT_API_URL: values["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: values["PREFECT_API_AUTH_STRING"],
    }
    with temporary_settings(updates), get_client(sync_client=True) as client:
        yield Platform(stack, client, Settings(), phantom)
