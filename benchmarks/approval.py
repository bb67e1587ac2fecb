"""From the alias `approved` set in MLflow to inference started: by the schedule, and by the webhook.

    python -m benchmarks.approval [--output results.json]

Stand-in models are registered with made-up test figures that pass the gates; nothing is inferred, since
no scan is prepared. The clock stops when Prefect has the flow run `infer` that the decision's audit row
started. By the schedule the wait depends on when in its interval the alias was set; it is set right after
a scheduled reconcile has ended, which is the longest wait.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.on_a_stack import now, platform, report
from infra.stack.throwaway import command
from retroln.catalog.records import DatasetDraft, MemberDraft
from retroln.settings import Settings
from retroln.steps import promote
from retroln.steps.train import test_hash
from retroln.steps.workspace import open_workspace
from tests.stand_in import scan_without_image

_FIGURES = {"cases": 6, "patients": 6, "sensitivity_ge10mm": 0.9, "fp_per_volume": 1.0, "dice_mean": 0.7}
_INTERVAL_S = 300
_DATASET = "d" * 64


def measure(rounds: int) -> dict[str, Any]:
    """Seconds from alias to started inference."""
    with platform(shard_workers=1, processes=1) as (stack, settings):
        _dataset(settings)
        _after_a_scheduled_reconcile()
        by_schedule = _approve_and_wait(settings)
        command(stack, "up", "--webhook")
        by_webhook = sorted(_approve_and_wait(settings) for _ in range(rounds))
    return {
        "reconcile_interval_s": _INTERVAL_S,
        "by_schedule_longest_s": by_schedule,
        "by_webhook_s": by_webhook,
        "by_webhook_median_s": by_webhook[len(by_webhook) // 2],
    }


def _approve_and_wait(settings: Settings) -> float:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    version = _register(settings)
    registry, catalog = open_workspace(settings).registry, open_workspace(settings).catalog
    for tag, value in (("decision", "approve"), ("reviewer", "benchmark"), ("comment", f"version {version}")):
        registry.set_tag(version, f"review.{tag}", value)
    begun = now()
    registry.set_alias("approved", version)
    with get_client(sync_client=True) as client:
        while True:
            rows = [row for row in catalog.audits(settings.model_name) if row.version == version]
            key = f"{settings.model_name}-audit-{rows[-1].audit_id}" if rows else None
            runs = client.read_flow_runs(limit=50, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
            if any(key and run.idempotency_key == key and run.start_time for run in runs):
                return round(now() - begun, 1)
            time.sleep(0.5)


def _after_a_scheduled_reconcile() -> None:
    """Sleep until a few seconds after a reconcile would have run by its cron (every five minutes)."""
    time.sleep(_INTERVAL_S - time.time() % _INTERVAL_S + 30)


def _register(settings: Settings) -> int:
    from retroln.tracking.runs import training_run

    workspace = open_workspace(settings)
    record = workspace.catalog.dataset(_DATASET)
    tags = {
        promote.SUMMARY_TAG: json.dumps(_FIGURES),
        promote.TEST_HASH_TAG: test_hash(record),
        promote.DATASET_TAG: record.version,
    }
    with TemporaryDirectory() as folder, training_run(settings, name="stand-in", params={}) as run:
        Path(folder, "stand-in.txt").write_text("no network", encoding="utf-8")
        return workspace.registry.register(Path(folder), run.run_id, tags)


def _dataset(settings: Settings) -> None:
    """Six locked test patients and two to train on, without images."""
    catalog = open_workspace(settings).catalog
    run_id, members = catalog.begin_run("benchmark", {}), []
    for number in range(8):
        name = f"C{number}"
        scan = catalog.add_scan(scan_without_image(name), run_id)
        role, fold = ("test", None) if number < 6 else ("train", number % 2)
        members.append(
            MemberDraft(scan_id=scan.scan_id, patient_id=scan.patient_id, case_id=name, role=role, fold=fold)
        )
    catalog.add_dataset(DatasetDraft(version=_DATASET, manifest_key="none", members=tuple(members)))


if __name__ == "__main__":
    report(__doc__, measure, rounds=(3, "by webhook; by schedule once"))
