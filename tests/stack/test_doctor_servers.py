"""`retroln doctor --servers` on a running stack: whose login, which workers, which deployments."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stack.driver import Platform

Doctor = Callable[..., subprocess.CompletedProcess[str]]
_ROOT = Path(__file__).parents[2]
_EXTRA = """
  - name: monthly
    entrypoint: flows.monthly.monthly
    work_pool: {name: cpu-pool, work_queue_name: flows}
"""


@pytest.fixture
def doctor(platform: Platform) -> Doctor:
    """The command in a process of its own, with one of the stack's files of settings."""

    def run(env_file: str = "retroln.env", **changed: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "RETROLN_ENV_FILE": str(platform.stack.home / env_file), **changed}
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "retroln.cli", "doctor", "--servers"]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=_ROOT, check=False
        )

    return run


def _broken(found: subprocess.CompletedProcess[str]) -> str:
    """The one line that asks for a fix."""
    assert found.returncode == 11, found.stdout + found.stderr
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("FIX")]
    return line


def test_the_operator_finds_every_part_at_work(doctor: Doctor) -> None:
    found = doctor()
    assert found.returncode == 0, found.stdout + found.stderr
    assert "logged in as operator" in found.stdout
    assert "may move aliases" in found.stdout
    assert "cpu-pool: work pool: flows, shards served by cpu-flows" in found.stdout
    assert "gpu-pool: work pool: inference, training served by" in found.stdout
    assert "prefect.yaml: 10 deployed" in found.stdout


def test_a_gpu_worker_may_not_move_aliases(doctor: Doctor) -> None:
    found = doctor("gpu.env")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "logged in as gpu" in found.stdout
    assert "may not move aliases" in found.stdout


def test_a_wrong_prefect_login(doctor: Doctor) -> None:
    line = _broken(doctor(PREFECT_API_AUTH_STRING="retroln:guessed"))
    assert "Prefect refused the login; fix: set PREFECT_API_AUTH_STRING" in line
    assert "guessed" not in line


def test_a_wrong_mlflow_password(doctor: Doctor) -> None:
    line = _broken(doctor(RETROLN_MLFLOW_PASSWORD="guessed"))
    assert "MLflow refused the login; got: user operator" in line
    assert "fix: mend RETROLN_MLFLOW_USER and RETROLN_MLFLOW_PASSWORD" in line


def test_a_missing_deployment_is_named(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text((_ROOT / "prefect.yaml").read_text() + _EXTRA)
    line = _broken(doctor(RETROLN_HOME=str(tmp_path)))
    assert "not deployed: monthly; fix: make stack" in line


def test_a_queue_without_a_worker_is_named(doctor: Doctor, tmp_path: Path) -> None:
    text = (_ROOT / "prefect.yaml").read_text().replace("work_queue_name: shards", "work_queue_name: spare")
    (tmp_path / "prefect.yaml").write_text(text)
    line = _broken(doctor(RETROLN_HOME=str(tmp_path)))
    assert "no worker takes from spare" in line
    assert "prefect worker start --pool cpu-pool --work-queue spare" in line
