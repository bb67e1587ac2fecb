"""Fixtures that every kind of test shares: settings in a temporary folder and small phantoms."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ["RETROLN_ENV_FILE"] = os.devnull  # a stack that runs on this machine is not the tests'

from retroln.imaging.phantom import Phantom, PhantomSpec, make_phantom
from retroln.settings import Settings
from tests.way import embedded, write_case


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An embedded platform of its own in a temporary folder."""
    return embedded(tmp_path)


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    """A coarse abdomen, LPS, fast to make."""
    return make_phantom(PhantomSpec(seed=7, spacing_mm=(4.0, 4.0, 5.0), orientation="LPS"))


@pytest.fixture
def deliver(tmp_path: Path, phantom: Phantom) -> Callable[..., Path]:
    """Write the phantom's files as `<patient>/<case>/...` into the source; returns the case's folder."""

    def write(
        case_id: str, patient_id: str = "PAT", parts: tuple[str, ...] = ("ct", "vertebrae", "mask")
    ) -> Path:
        folder = tmp_path / "source" / patient_id / case_id
        write_case(folder, phantom, parts)
        return folder

    return write
