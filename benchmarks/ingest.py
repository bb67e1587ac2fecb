"""Ingest from S3 beside a plain download: fetch and hash, the whole ingest, and memory by size.

    python -m benchmarks.ingest [--rounds 7] [--output results.json]

One SeaweedFS, one 512x512x240 CT (.nii.gz). Rates are medians of the rounds, and the sides take turns within
a round.

- fetch: `boto3` downloading to a file, against `ObjectStore.get_file`, which hashes on the way.
- ingest: that download plus one decode of the file by nibabel to its stored type, against the whole ingest of
  one case (fetch, hash, checks, canonical copy compressed and stored, catalog).
- memory: peak of a fresh process that fetches a small and a large object.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.crop import make_case
from benchmarks.on_a_stack import report
from infra.servers import S3Server, start_seaweedfs
from retroln.settings import Settings

_SIZES_MB = (16, 1024)


def measure(rounds: int) -> dict[str, Any]:
    """Medians of both sides, their ratios, and peak memory by object size."""
    with TemporaryDirectory() as name, start_seaweedfs(Path(name, "seaweedfs")) as server:
        folder = Path(name)
        settings = _settings(folder, server)
        with closing(server.client()) as client:
            for bucket in ("source", "retroln"):
                client.create_bucket(Bucket=bucket)
            (folder / "case").mkdir()
            make_case(folder / "case")
            client.upload_file(str(folder / "case" / "ct.nii.gz"), "source", "PAT/CASE/ct.nii.gz")
            seconds = _take_turns(rounds, _sides(settings, client, folder))
            memory = {size: _peak_of_fetch(settings, client, folder, size) for size in _SIZES_MB}
        size_mb = (folder / "case" / "ct.nii.gz").stat().st_size / 1e6
    return {
        "ct_mb": round(size_mb, 1),
        "download_mb_per_s": round(size_mb / seconds["download"], 1),
        "fetch_and_hash_mb_per_s": round(size_mb / seconds["fetch"], 1),
        "fetch_rate_to_download": round(seconds["download"] / seconds["fetch"], 2),
        "download_and_decode_s": round(seconds["download and decode"], 3),
        "ingest_s": round(seconds["ingest"], 3),
        "ingest_to_download_and_decode": round(seconds["ingest"] / seconds["download and decode"], 2),
        "peak_mb_of_fetch_by_object_mb": memory,
    }


def _settings(folder: Path, server: S3Server) -> Settings:
    return Settings(
        source_uri="s3://source",
        store_uri="s3://retroln",
        s3_endpoint=server.endpoint,
        s3_access_key=server.access_key,
        s3_secret_key=server.secret_key,
        catalog_url=f"sqlite:///{folder}/catalog.db",
        work_dir=folder / "work",
        processes=1,
    )


def _sides(settings: Settings, client: Any, folder: Path) -> dict[str, Callable[[], None]]:
    from retroln.steps.workspace import open_workspace

    source, target = open_workspace(settings).source, folder / "fetched.nii.gz"

    def download() -> None:
        client.download_file("source", "PAT/CASE/ct.nii.gz", str(target))

    def download_and_decode() -> None:
        import nibabel as nib
        import numpy as np

        download()
        np.asarray(nib.load(target).dataobj).max()

    return {
        "download": download,
        "fetch": lambda: source.get_file("PAT/CASE/ct.nii.gz", target) and None,
        "download and decode": download_and_decode,
        "ingest": lambda: _ingest(settings),
    }


def _ingest(settings: Settings) -> None:
    """One pass over the source, whose case is made new each time by a catalog of its own."""
    from retroln.steps import ingest
    from retroln.steps.runs import Run

    fresh = settings.model_copy(update={"catalog_url": f"{settings.catalog_url}-{time.monotonic_ns()}"})
    run, entries = Run.begin(fresh, "ingest", {}), ingest.list_entries(fresh)
    begun = time.perf_counter()
    outcomes = ingest.ingest(fresh, entries, run_id=run.run_id)
    _ingest_s.append(time.perf_counter() - begun)
    if [outcome.outcome.value for outcome in outcomes] != ["done"]:
        raise RuntimeError(str(outcomes))


_ingest_s: list[float] = []


def _take_turns(rounds: int, sides: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each side; making the ingest's empty catalog is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):  # the first round warms up
        for name, call in sides.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(_ingest_s[-1] if name == "ingest" else time.perf_counter() - begun)
    return {name: median(values[1:]) for name, values in seconds.items()}


def _peak_of_fetch(settings: Settings, client: Any, folder: Path, size_mb: int) -> int:
    """Peak memory in MB of a process that fetches one object."""
    path = folder / "large"
    with path.open("wb") as stream:
        for _ in range(size_mb):
            stream.write(bytes(1_000_000))
    client.upload_file(str(path), "source", f"size-{size_mb}")
    child = (
        "import sys; from pathlib import Path; from retroln.settings import Settings;"
        "from retroln.storage.open import open_store;"
        "open_store('s3://source', Settings()).get_file(sys.argv[1], Path(sys.argv[2]));"
        "status = Path('/proc/self/status').read_text();"  # ru_maxrss begins with that of the parent
        "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)"
    )
    command = [sys.executable, "-c", child, f"size-{size_mb}", str(folder / "fetched-large")]
    environment = {**os.environ, **_keys(settings)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


def _keys(settings: Settings) -> dict[str, str]:
    access, secret = settings.s3_access_key, settings.s3_secret_key
    if access is None or secret is None:
        raise ValueError("the server's keys are needed")
    return {
        "RETROLN_S3_ENDPOINT": str(settings.s3_endpoint),
        "RETROLN_S3_ACCESS_KEY": access.get_secret_value(),
        "RETROLN_S3_SECRET_KEY": secret.get_secret_value(),
    }


if __name__ == "__main__":
    report(__doc__, measure, rounds=(7, "per side"))
