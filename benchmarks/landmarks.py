"""Vertebrae of several CT: one process of RetroLN beside a fresh process of TotalSegmentator per case.

    python -m benchmarks.landmarks [--cases 3] [--output results.json]

Both use the same STAND-IN weights of the 3 mm network (`python -m infra.stand_in_weights` makes them) and the
CPU, and give the same label maps, which is checked. The plain side is what a script does that calls
TotalSegmentator once per case: it starts, imports, loads weights and ends each time. Ours does that once; its
first case is shown by itself. TotalSegmentator's own weights are larger: loading and predicting take longer.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_FIRST_SEED = 91_000
_SPACING_MM = (0.9, 0.9, 2.5)


def measure(cases: int) -> dict[str, Any]:
    """Seconds per case of both sides and their ratio."""
    from infra.stand_in_weights.cache import cached
    from tests.fresh_totalseg import home_with

    networks = cached()
    with TemporaryDirectory() as name:
        folder = Path(name)
        home = home_with(networks, folder)
        scans = [_make_scan(folder, number) for number in range(cases)]
        return _compare(scans, networks, home)


def _compare(scans: list[Path], networks: Path, home: Path) -> dict[str, Any]:
    plain = [_run_plain(scan, home) for scan in scans]
    child = [sys.executable, "-W", "ignore", "-m", "benchmarks.landmarks", "child", str(networks)]
    ours = json.loads(
        subprocess.run([*child, *map(str, scans)], check=True, capture_output=True, text=True).stdout
    )
    median_plain, median_warm = statistics.median(plain), statistics.median(ours["seconds"][1:])
    return {
        "plain_s": [round(s, 2) for s in plain],
        "ours_s": [round(s, 2) for s in ours["seconds"]],
        "start_and_import_s": round(ours["import_s"], 2),
        "median_plain_s": round(median_plain, 2),
        "median_warm_s": round(median_warm, 2),
        "ratio": round(median_plain / median_warm, 2),
        "least_dice": min(_dice(scan) for scan in scans),
    }


def _run_plain(scan: Path, home: Path) -> float:
    from tests.fresh_totalseg import label

    started = time.perf_counter()
    label(scan, home, fast=scan.with_name(f"{scan.name}-plain.nii.gz"))
    return time.perf_counter() - started


def _child(networks: Path, scans: list[Path]) -> None:
    """One process, all cases; prints the seconds of each."""
    started = time.perf_counter()
    from retroln.anatomy import totalseg  # noqa: F401
    from retroln.anatomy.totalseg_vertebrae import segment
    from retroln.imaging import nifti
    from retroln.settings import TotalSegSpec
    from retroln.steps import weights, weights_copy
    from tests.way import embedded

    with TemporaryDirectory() as name:
        bundle = weights.import_weights(embedded(Path(name)), [networks])
        spec = TotalSegSpec(weights=bundle.sha256, quality="fast", device="cpu")
        copy = weights_copy.fetch(embedded(Path(name), totalseg=spec))
        import_s, seconds = time.perf_counter() - started, []
        for scan in scans:
            started = time.perf_counter()
            labels = segment(nifti.read(scan), copy, spec).labels
            nifti.write_source(scan.with_name(f"{scan.name}-ours.nii.gz"), labels)
            seconds.append(time.perf_counter() - started)
    print(json.dumps({"import_s": import_s, "seconds": seconds}))


def _make_scan(folder: Path, number: int) -> Path:
    from retroln.imaging import nifti
    from retroln.imaging.phantom import PhantomSpec, make_phantom

    path = folder / f"{number}.nii.gz"
    nifti.write_source(path, make_phantom(PhantomSpec(_FIRST_SEED + number, _SPACING_MM, "LPS")).ct)
    return path


def _dice(scan: Path) -> float:
    """The lowest over T11-S1 of both sides' label maps."""
    from retroln.imaging import nifti
    from tests.fresh_totalseg import spine_overlaps

    ours, plain = (
        nifti.read_labels(scan.with_name(f"{scan.name}-{side}.nii.gz")).array for side in ("ours", "plain")
    )
    return round(min(spine_overlaps(ours, plain).values(), default=0.0), 5)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        _child(Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
    else:
        from benchmarks.on_a_stack import report

        report(__doc__, measure, cases=(3, "CT per side"))
