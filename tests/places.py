"""Platforms of a test's own: on this machine alone, or on a real database and a real bucket."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from infra.servers import make_catalog
from retroln.settings import Settings


def make_settings(kind: str, request: pytest.FixtureRequest, folder: Path) -> Settings:
    """SQLite and folders for `embedded`, PostgreSQL and S3 for `servers`; MLflow is a file for both."""
    place = {
        "source_uri": f"file://{folder}/source",
        "store_uri": f"file://{folder}/store",
        "catalog_url": f"sqlite:///{folder}/catalog.db",
    }
    if kind == "servers":
        server = request.getfixturevalue("s3_server")
        bucket = server.make_bucket(f"b-{secrets.token_hex(6)}")
        url = request.getfixturevalue("postgres_url")
        place = {
            "source_uri": f"{bucket}/source",
            "store_uri": f"{bucket}/store",
            "catalog_url": make_catalog(url, f"withdraw{secrets.token_hex(4)}"),
            "s3_endpoint": server.endpoint,
            "s3_access_key": server.access_key,
            "s3_secret_key": server.secret_key,
        }
    return Settings(
        **place,
        mlflow_uri=f"sqlite:///{folder}/mlflow.db",
        mlflow_artifacts=str(folder / "mlartifacts"),
        work_dir=folder / "work",
        processes=1,
        patience_s=0.0,
    )
