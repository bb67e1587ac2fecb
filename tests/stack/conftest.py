"""One stack for all tests of this folder: every server and worker that `make stack` starts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.ports import free_ports
from infra.stack.plan import Stack
from infra.stack.throwaway import throwaway_stack
from retroln.imaging.phantom import Phantom
from retroln.settings import Settings
from tests.stack.driver import STACK_OPTIONS, Platform, hold_nightly_schedules
from tests.stack.sink import Sink, listening

# The tests' networks are trained for a few steps, so the gates must let nearly everything pass.
_LENIENT = """
RETROLN_GATES__MIN_TEST_PATIENTS=1
RETROLN_GATES__MIN_SENSITIVITY_GE10MM=0
RETROLN_GATES__MAX_FP_PER_VOLUME=1000000
RETROLN_GATES__MAX_SENSITIVITY_DROP=1
RETROLN_GATES__MAX_DICE_DROP=1
"""
_HASTY = """
RETROLN_PROCESSES=1
RETROLN_PATIENCE_S=90
RETROLN_MAX_PENDING_S=45
"""


@pytest.fixture(scope="session")
def sink() -> Iterator[Sink]:
    """Where the stack's notifications go; a stack that is kept remembers the address."""
    own = Path(os.environ.get("RETROLN_TEST_STACK", ""), "platform.env")
    known = re.search(r"127\.0\.0\.1:(\d+)/notify", own.read_text() if own.is_file() else "")
    with listening(int(known[1]) if known else free_ports(1)) as open_sink:
        yield open_sink


@pytest.fixture(scope="session")
def stack(sink: Sink) -> Iterator[Stack]:
    """A running stack in a folder of its own; `RETROLN_TEST_STACK` names one to keep between sessions."""
    with throwaway_stack(
        *STACK_OPTIONS,
        own_settings=f"{_LENIENT}{_HASTY}RETROLN_NOTIFY_URL={sink.address}\n",
        keep=os.environ.get("RETROLN_TEST_STACK"),
    ) as running:
        yield running


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
        hold_nightly_schedules(client)
        yield Platform(stack, client, Settings(), phantom)
