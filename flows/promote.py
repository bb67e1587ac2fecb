"""Promote flow: gates, a person's decision, the champion's move."""

from __future__ import annotations

from prefect import flow

from retroln.metrics.gate import GateDecision
from retroln.settings import Settings
from tasks.stages import check_gates, promote_version


@flow(name="promote", validate_parameters=False)
def promote(version: int, reviewer: str, comment: str, settings: Settings | None = None) -> GateDecision:
    """Make `version` the champion if its gates pass and `reviewer` says so."""
    settings = settings or Settings()
    decision = check_gates(settings, version)
    promote_version(settings, version, reviewer, comment)
    return decision
