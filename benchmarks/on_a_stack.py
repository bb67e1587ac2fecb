"""A stack for the benchmarks, and cases in its catalog that wait for prepare."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from infra.stack.plan import Stack
from infra.stack.throwaway import throwaway_stack
from retroln.catalog.records import ScanDraft
from retroln.imaging import nifti
from retroln.imaging.phantom import PhantomSpec, make_phantom
from retroln.settings import Settings


@contextmanager
def platform(shard_workers: int, processes: int) -> Iterator[tuple[Stack, Settings]]:
    """A fresh stack, and settings as its operator has them; this process is its client meanwhile."""
    own = f"RETROLN_PROCESSES={processes}\n"
    with throwaway_stack("--shard-workers", str(shard_workers), own_settings=own) as stack:
        os.environ["RETROLN_ENV_FILE"] = str(stack.home / "retroln.env")
        client = stack.client_environment("operator")
        address = {
            PREFECT_API_URL: client["PREFECT_API_URL"],
            PREFECT_API_AUTH_STRING: client["PREFECT_API_AUTH_STRING"],
        }
        with temporary_settings(address):
            yield stack, Settings(fan_out="workers")


def deliver(
    settings: Settings, stack: Stack, cases: list[str], spacing_mm: tuple[float, float, float]
) -> None:
    """The same phantom under every case id, each a patient of its own, waiting for prepare.

    The first case is delivered and ingested; the others are recorded over its stored objects, since ingest is
    not what these benchmarks measure. Preparing them reads those objects as often as if each had its own.
    """
    from contextlib import closing

    from retroln.steps import ingest
    from retroln.steps.runs import Run

    phantom = make_phantom(PhantomSpec(seed=7, spacing_mm=spacing_mm, orientation="LPS"))
    with TemporaryDirectory() as folder, closing(stack.s3("delivery").client()) as client:
        for name, volume in (("ct", phantom.ct), ("vertebrae", phantom.vertebrae), ("mask", phantom.nodes)):
            path = Path(folder, f"{name}.nii.gz")
            nifti.write_source(path, volume)
            client.upload_file(str(path), "source", f"{cases[0]}-patient/{cases[0]}/{name}.nii.gz")
    run = Run.begin(settings, "ingest", {})
    run.finish(ingest.ingest(settings, run_id=run.run_id))
    _record_again(settings, cases[0], cases[1:], run.run_id)


def _record_again(settings: Settings, ingested: str, names: list[str], run_id: int) -> None:
    """Record an ingested case under other names and patients; only the source's fingerprint differs too."""
    from retroln.steps.workspace import open_workspace

    catalog = open_workspace(settings).catalog
    scan = catalog.current_scan(ingested)
    if scan is None or scan.ct_key is None:
        raise RuntimeError(f"{ingested} was not taken in: {scan}")
    known = [field.name for field in fields(ScanDraft) if field.name != "marks"]  # they are one image's
    kept = {name: getattr(scan, name) for name in known}
    for name in names:
        own = {"case_id": name, "patient_id": f"{name}-patient", "source_fingerprint": name}
        catalog.add_scan(ScanDraft(**(kept | own)), run_id)


def report(
    description: str | None, measure: Callable[..., dict[str, Any]], **numbers: tuple[int, str]
) -> None:
    """Measure with the numbers of the command line, print the figures, and write them to `--output`.

    Args:
        numbers: default and help of each argument of `measure`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=text)
    parser.add_argument("--output", type=Path)
    options = vars(parser.parse_args())
    output = options.pop("output")
    shown = json.dumps(measure(**options), indent=1)
    print(shown)
    if output:
        output.write_text(shown, "utf-8")


def run_deployment(name: str, **parameters: Any) -> Any:
    """Start a deployment and wait for its end, as a user would; the flow run."""
    from prefect.deployments import run_deployment as start

    ended: Any = start(f"{name}/{name}", parameters=parameters, poll_interval=1, as_subflow=False)
    if not ended.state.is_completed():
        raise RuntimeError(f"{name} ended as {ended.state}")
    return ended


def prepared_at(settings: Settings, cases: list[str]) -> list[float]:
    """When each case became prepared, in seconds since 1970, in order."""
    from retroln.steps.workspace import open_workspace

    catalog = open_workspace(settings).catalog
    moments = []
    for case in cases:
        event = catalog.case_history(case).events[-1]
        if event.to_state != "prepared":
            raise RuntimeError(f"{case} is {event.to_state}")
        moments.append(event.at.timestamp())
    return sorted(moments)


def now() -> float:
    """A clock for durations, in seconds."""
    return time.monotonic()
