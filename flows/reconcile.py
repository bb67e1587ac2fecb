"""Reconcile flow: what reviewers decided in MLflow takes effect, and what died is cleaned up."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.states import Completed

from flows.accounting import rename
from flows.sweep import sweep
from retroln.catalog.records import AuditRecord
from retroln.settings import Settings
from retroln.steps.reconcile import Reconciled
from retroln.tracking import links
from tasks import events, stages
from tasks.artifacts import show_link, show_text
from tasks.policy import settings_in_use


@flow(name="reconcile", flow_run_name="reconcile", retries=2, retry_delay_seconds=20, timeout_seconds=600)
def reconcile() -> State[None]:
    """Decide what a reviewer approved in MLflow, start inference after a promotion, sweep what was left."""
    settings = settings_in_use()
    done = stages.reconcile_registry(settings)
    remarks = _remarks(done)
    try:
        if done.decision:
            _announce(settings, done)
        if done.current and settings.fan_out == "workers":
            start_inference(settings, done.current)
        remarks += sweep(settings)
        swept = stages.sweep_withdrawn(settings)
        remarks += swept.remarks()
    finally:
        _show(remarks)  # at once: the next try does not find again what this one put right
    swept.require_finished()
    return Completed(message="; ".join(remarks) or "nothing to do")


def start_inference(settings: Settings, row: AuditRecord) -> None:
    """Start infer once per audit row, however often this is called."""
    run_deployment(
        "infer/infer",
        timeout=0,
        as_subflow=False,
        flow_run_name=f"infer with version {row.version}",
        idempotency_key=f"{settings.model_name}-audit-{row.audit_id}",
    )


def _show(remarks: list[str]) -> None:
    if remarks:
        show_text("reconcile", "\n".join(f"- {remark}" for remark in remarks), "What reconcile did")
    rename(f"reconcile: {remarks[0]}" if remarks else "reconcile: nothing to do")


def _announce(settings: Settings, done: Reconciled) -> None:
    decision = done.decision
    assert decision is not None
    events.model_promoted(settings, decision.version, decision.previous, decision.audit_id, decision.action)
    show_link("mlflow-version", links.version_url(settings, decision.version), "the champion in MLflow")


def _remarks(done: Reconciled) -> list[str]:
    """What happened, in sentences."""
    found = [f"version {done.decision.version} is champion"] if done.decision else []
    found += [f"version {version} is refused: {reason}" for version, reason in done.refused]
    if done.waiting:
        found.append(done.waiting)
    return [*found, *done.remarks]
