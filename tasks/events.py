"""Events that triggers and automations listen to: an interface, described in docs/reference/events.md."""

from __future__ import annotations

from typing import Any

from prefect.events import emit_event

from retroln.settings import Settings


def scans_ingested(settings: Settings, count: int) -> None:
    """New scans wait for preparation."""
    _emit("retroln.scans.ingested", f"retroln.store.{settings.store_uri}", {"count": count})


def cases_quarantined(settings: Settings, stage: str, count: int, reasons: dict[str, int]) -> None:
    """A run put cases into quarantine."""
    payload = {"stage": stage, "count": count, "reasons": reasons}
    _emit("retroln.cases.quarantined", f"retroln.store.{settings.store_uri}", payload)


def dataset_published(settings: Settings, version: str, cases: int) -> None:
    """A dataset version was frozen."""
    _emit(
        "retroln.dataset.published", f"retroln.dataset.{version[:16]}", {"version": version, "cases": cases}
    )


def model_registered(settings: Settings, version: int) -> None:
    """Training registered a candidate."""
    _emit("retroln.model.registered", _model(settings), {"model": settings.model_name, "version": version})


def model_promoted(
    settings: Settings, version: int, previous: int | None, audit_id: int, action: str
) -> None:
    """Another version is champion, by promotion or rollback."""
    payload = {"model": settings.model_name, "version": version, "previous": previous}
    _emit("retroln.model.promoted", _model(settings), {**payload, "audit": audit_id, "action": action})


def _model(settings: Settings) -> str:
    return f"retroln.model.{settings.model_name}"


def _emit(name: str, resource: str, payload: dict[str, Any]) -> None:
    emit_event(name, {"prefect.resource.id": resource, "prefect.resource.name": resource}, payload=payload)
