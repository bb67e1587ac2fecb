"""A stack that is gone when its block ends, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from infra.ports import free_ports
from infra.stack.plan import Stack


@contextmanager
def throwaway_stack(
    *options: str, own_settings: str = "", variables: Mapping[str, str] | None = None, keep: str | None = None
) -> Iterator[Stack]:
    """Run a stack in a folder of its own on free ports.

    Args:
        options: of `python -m infra.stack up`.
        own_settings: lines of its `platform.env`.
        variables: environment of the command, e.g. RETROLN_STACK_POLL_S.
        keep: folder of a stack that is used if it is there, made if not, and left running.

    Raises:
        RuntimeError: it does not start.
    """
    if keep and (Path(keep) / "stack.json").exists():
        yield Stack(Path(keep), json.loads((Path(keep) / "stack.json").read_text("utf-8"))["first_port"])
        return
    home = Path(keep) if keep else Path(tempfile.mkdtemp(prefix="retroln-stack-"))
    home.mkdir(exist_ok=True)
    home.chmod(0o711)
    (home / "platform.env").write_text(own_settings, "utf-8")
    stack = Stack(home, free_ports(20))
    try:
        command(stack, "up", *options, variables=variables)
        yield stack
    finally:
        if not keep:
            try:
                command(stack, "down")
            finally:
                shutil.rmtree(home, ignore_errors=True)


def command(stack: Stack, *words: str, variables: Mapping[str, str] | None = None) -> None:
    """`python -m infra.stack` for one stack.

    Raises:
        RuntimeError: it failed; what it said is in the message.
    """
    environment = {
        **os.environ,
        "RETROLN_STACK_HOME": str(stack.home),
        "RETROLN_STACK_PORT": str(stack.first_port),
        "PYTHONWARNINGS": "ignore",
        **(variables or {}),
    }
    environment.pop("RETROLN_ENV_FILE", None)
    run = [sys.executable, "-m", "infra.stack", *words]
    done = subprocess.run(
        run, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stdout}{done.stderr}")
