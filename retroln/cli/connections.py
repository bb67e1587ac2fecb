"""Use each server as the platform does: `retroln doctor --servers`. Nothing is left behind."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec

from retroln.cli.finding import Finding, tried
from retroln.errors import (
    ConflictError,
    IntegrityError,
    MissingExtraError,
    UnavailableError,
    install_from_checkout,
)
from retroln.settings import Settings
from retroln.storage.base import ObjectStore
from retroln.storage.open import open_store

_DRIFT_S = 60.0
"""S3 refuses requests whose clock is 15 minutes off; logs that are a minute apart are hard to read."""


def use_servers(settings: Settings) -> Iterator[Finding]:
    """Source, store, catalog, MLflow and Prefect, each used for real."""
    from retroln.cli.prefect_api import use_prefect

    yield tried("source", settings.source_uri, lambda: _use_source(settings), "RETROLN_SOURCE_URI")
    yield tried("store", settings.store_uri, lambda: _use_store(settings), "RETROLN_STORE_URI")
    yield tried("catalog", settings.catalog_url, lambda: _use_catalog(settings), "RETROLN_CATALOG_URL")
    yield tried("mlflow registry", settings.mlflow_uri, lambda: _use_mlflow(settings), "RETROLN_MLFLOW_URI")
    yield from use_prefect(settings)


def _use_source(settings: Settings) -> str:
    first = next(open_store(settings.source_uri, settings, read_only=True).list(), None)
    return "can be listed" if first else "can be listed; nothing was delivered yet"


def _use_store(settings: Settings) -> str:
    """Put, refuse to put again, get, delete: all that the platform relies on."""
    store, key = open_store(settings.store_uri, settings), f"probe/{secrets.token_hex(8)}"
    next(store.list(), None)
    try:
        _put_once(store, key)
        if store.get_bytes(key) != b"probe":
            raise IntegrityError("other bytes came back", file=f"{store.uri}/{key}")
    finally:
        with suppress(Exception):  # the first error matters
            store.delete(key)
    return "put, get and delete work"


def _put_once(store: ObjectStore, key: str) -> None:
    store.put_bytes(b"probe", key, if_absent=True)
    try:
        store.put_bytes(b"other", key, if_absent=True)
    except ConflictError:
        return
    raise UnavailableError(
        "the object store overwrites where it was told not to",
        file=store.uri,
        fix="use an S3 server that honours If-None-Match",
    )


def _use_catalog(settings: Settings) -> str:
    """Log in, write, and compare clocks."""
    from sqlalchemy import text

    from retroln.steps.workspace import open_catalog

    catalog = open_catalog(settings)
    catalog.release_all("retroln doctor")  # nobody's claims: it needs the right to write and changes nothing
    with catalog.database.engine.connect() as connection:
        revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
        drift_s = 0.0
        if connection.dialect.name == "postgresql":
            now = connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())"))
            drift_s = float(now) - time.time()
    if abs(drift_s) > _DRIFT_S:
        raise UnavailableError(
            f"its clock is {drift_s:+.0f} s from this machine's", fix="let both keep time by NTP"
        )
    return f"migrated to {revision}, can be written, clock {drift_s:+.1f} s from here"


def _use_mlflow(settings: Settings) -> str:
    """Log in, read the registry, and say whether this login may move aliases; changes nothing."""
    if find_spec("mlflow") is None:
        raise MissingExtraError("MLflow is not installed", fix=install_from_checkout("train"))
    from retroln.tracking.rights import rights

    found = rights(settings)
    may = "may" if found.may_move_aliases else "may not"
    versions = f"{found.versions} version" + ("" if found.versions == 1 else "s")
    return f"{found.who}, {versions} of {settings.model_name}, {may} move aliases"
