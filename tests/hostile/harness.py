"""Ingest a source in a process of its own with a cap on memory; say how each case ended and after how long.

python -m tests.hostile.harness FOLDER    (FOLDER/source is taken in; FOLDER/verdicts.jsonl is written)
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LONGEST_S = 5.0
"""No single input may take longer."""

LARGEST_MB = 2600
"""Peak memory of the whole process: what nifti.py lets one file announce, and the rest of the program."""

_ADDRESS_SPACE = 8 << 30  # so that a bomb that goes off ends this process and not the machine


@dataclass(frozen=True)
class Verdict:
    """How one case ended."""

    case_id: str
    outcome: str
    reason: str | None
    detail: str | None
    seconds: float


@dataclass(frozen=True)
class Pass:
    """All verdicts of a source, by case id, and the peak memory of the process that gave them."""

    verdicts: dict[str, Verdict]
    peak_mb: float


def take_in(folder: Path) -> Pass:
    """Ingest `folder/source` in a fresh process whose working directory is `folder/cwd`.

    Raises:
        RuntimeError: the process died, hung or said something on the way.
    """
    (folder / "cwd").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "tests.hostile.harness", str(folder)]
    done = subprocess.run(
        command, cwd=folder / "cwd", env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    if done.returncode or done.stderr:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    return Pass({line["case_id"]: Verdict(**line) for line in lines}, float(done.stdout))


def _main(folder: Path) -> None:
    from retroln.catalog.accounting import CaseOutcome
    from retroln.steps import ingest
    from retroln.steps.runs import Run
    from tests.way import embedded

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    settings = embedded(folder, pseudonym_key="of these tests, thirty-two characters")
    run = Run.begin(settings, "ingest", {})
    with (folder / "verdicts.jsonl").open("w") as stream:
        last = time.monotonic()

        def note(case: CaseOutcome) -> None:
            nonlocal last
            seconds, last = time.monotonic() - last, time.monotonic()
            line = Verdict(case.case_id, case.outcome.value, case.reason, case.detail, round(seconds, 3))
            stream.write(json.dumps(vars(line)) + "\n")

        run.finish(ingest.ingest(settings, run_id=run.run_id, on_outcome=note))
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
