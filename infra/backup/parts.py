"""What saving and restoring share: which files, and PostgreSQL's programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from infra import postgres
from infra.stack.plan import Stack

PRIVATE = ("secrets.json", "platform.env", "stack.json")
JOURNALS = Path("work/journals")


def run_as_superuser(stack: Stack, command: list[str]) -> None:
    """One of PostgreSQL's programs as superuser; the password is not on its command line."""
    login = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(stack.postgres_port),
        "PGUSER": postgres.OWNER,
        "PGPASSWORD": (stack.home / "postgres.password").read_text("utf-8"),
    }
    program = str(postgres.binaries() / command[0])
    done = subprocess.run(
        [program, *command[1:]],
        env={**os.environ, **login},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-1000:]}")


def require_empty(folder: Path) -> None:
    """Raise `RuntimeError` unless `folder` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RuntimeError(f"{folder} is not empty; name a new folder")
