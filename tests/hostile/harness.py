"""Ingest a source in a process of its own with a cap on memory; say how each case ended and after how long.

python -m tests.hostile.harness FOLDER    (FOLDER/source is taken in; FOLDER/verdicts.jsonl is written)
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from retroln.imaging.volume import LARGEST_BYTES

LONGEST_S, LONGEST_READS = 5.0, 3
"""No single input may take more of one processor, what it starts included: so many seconds, or, on a slower
one, so many times what it takes to inflate the largest volume, which an honest input may need as well."""

LONGEST_WAIT_S = 120.0
"""By the clock, on a machine that others use too."""

LARGEST_MB = (LARGEST_BYTES * 3 // 2 >> 20) + 400
"""Peak memory of a pass over inputs that are held: one and a half of the largest volume, and the program."""

_ADDRESS_SPACE = 8 << 30  # so that a bomb that goes off ends this process and not the machine


@dataclass(frozen=True)
class Verdict:
    """How one case ended, after how many seconds of a processor and by the clock."""

    case_id: str
    outcome: str
    reason: str | None
    detail: str | None
    seconds: float
    waited_s: float


@dataclass(frozen=True)
class Pass:
    """All verdicts of a source, by case id, and the peak memory of the process that gave them.

    Attributes:
        peak_mb: of the process, and of the largest that it started.
        inflating_s: what the process took to inflate as much as the largest volume has, in seconds of a
            processor.
    """

    verdicts: dict[str, Verdict]
    peak_mb: float
    inflating_s: float

    @property
    def done(self) -> set[str]:
        """Cases that were taken in."""
        return {name for name, verdict in self.verdicts.items() if verdict.outcome == "done"}

    def require_ends(self, cases: Collection[str]) -> None:
        """Every case is taken in, or held under a reason with a message that names the fix; quickly."""
        assert set(self.verdicts) == set(cases)
        ends = Counter(verdict.outcome for verdict in self.verdicts.values())
        wrong = [v for v in self.verdicts.values() if v.outcome not in ("done", "quarantined")]
        assert set(ends) == {"done", "quarantined"}, (ends, wrong)
        for verdict in self.verdicts.values():
            if verdict.outcome == "quarantined":
                assert verdict.reason in _documented(), verdict
                for part in ("expected", "got", "fix"):
                    assert part in str(verdict.detail).lower(), verdict
                assert str(verdict.detail).isprintable() or "\n" in str(verdict.detail), verdict
        self.require_quick()
        assert self.peak_mb < LARGEST_MB

    def require_quick(self) -> None:
        """No input took longer than an input may."""
        longest_s = max(LONGEST_S, LONGEST_READS * self.inflating_s)
        for verdict in self.verdicts.values():
            assert verdict.seconds < longest_s and verdict.waited_s < LONGEST_WAIT_S, (verdict, longest_s)


@cache
def _documented() -> frozenset[str]:
    """Reasons that the page on held cases explains."""
    page = Path(__file__).parents[2] / "docs/howto/quarantine.md"
    return frozenset(re.findall(r"^\| `(\w+)` \|", page.read_text(), re.MULTILINE))


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
    return Pass({line["case_id"]: Verdict(**line) for line in lines}, **json.loads(done.stdout))


def require_nothing_beside(folder: Path) -> None:
    """A pass wrote where it should and nowhere else, and left nothing in its scratch folder."""
    beside = {path.name for path in folder.iterdir() if not path.name.startswith("catalog.db")}
    assert beside == {"cwd", "source", "store", "tmp", "verdicts.jsonl", "work"}
    for name in ("cwd", "tmp", "work"):
        assert list((folder / name).iterdir()) == []


def _clocks() -> tuple[float, float]:
    """Seconds of a processor, of this process and those that it started, and by the clock."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system, time.monotonic()


def _inflating_s() -> float:
    """Measured on an eighth of it."""
    packer, megabyte = zlib.compressobj(1), bytes(1 << 20)
    packed = b"".join([*(packer.compress(megabyte) for _ in range(LARGEST_BYTES >> 23)), packer.flush()])
    unpacker, before = zlib.decompressobj(), time.process_time()
    while not unpacker.eof:
        unpacker.decompress(packed, 1 << 20)
        packed = unpacker.unconsumed_tail
    return 8 * (time.process_time() - before)


def _main(folder: Path) -> None:
    from retroln.catalog.accounting import CaseOutcome
    from retroln.steps import ingest
    from retroln.steps.runs import Run
    from tests.way import embedded

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    settings = embedded(folder, pseudonym_key="of these tests, thirty-two characters")
    run = Run.begin(settings, "ingest", {})
    with (folder / "verdicts.jsonl").open("w") as stream:
        before = _clocks()

        def note(case: CaseOutcome) -> None:
            nonlocal before
            now = _clocks()
            passed = [round(after - start, 3) for start, after in zip(before, now, strict=True)]
            before = now
            line = Verdict(case.case_id, case.outcome.value, case.reason, case.detail, *passed)
            stream.write(json.dumps(vars(line)) + "\n")

        run.finish(ingest.ingest(settings, run_id=run.run_id, on_outcome=note))
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sys.stdout.write(json.dumps({"peak_mb": sum(peaks) / 1024, "inflating_s": _inflating_s()}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
