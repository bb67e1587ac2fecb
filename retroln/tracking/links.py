"""Addresses of MLflow's pages, for people; an embedded MLflow has none."""

from __future__ import annotations

from retroln.settings import Settings
from retroln.tracking.connection import Connection


def run_url(settings: Settings, run_id: str) -> str | None:
    """The page of a training run."""
    if not settings.mlflow_uri.startswith("http"):
        return None
    experiment = Connection.of(settings).experiment_id
    return f"{settings.mlflow_uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def version_url(settings: Settings, version: int) -> str | None:
    """The page of a registered version, where a reviewer sets tags and alias."""
    if not settings.mlflow_uri.startswith("http"):
        return None
    return f"{settings.mlflow_uri.rstrip('/')}/#/models/{settings.model_name}/versions/{version}"
