"""The places a step works with, opened once per process from the settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from retroln.catalog.catalog import Catalog
from retroln.files import make_folder
from retroln.settings import Settings
from retroln.storage.base import ObjectStore
from retroln.storage.open import open_store

if TYPE_CHECKING:
    from retroln.tracking.registry import MlflowRegistry


@dataclass(frozen=True)
class Workspace:
    """Settings and the stores they name.

    Attributes:
        source: CT as delivered, only ever read.
        store: what RetroLN writes: canonical scans, crops, predictions, pages.
    """

    settings: Settings
    catalog: Catalog
    source: ObjectStore
    store: ObjectStore

    def of_worker(self, owner: str | None) -> Self:
        """The same places in a worker's hands; see `Catalog.of_worker`."""
        return replace(self, catalog=self.catalog.of_worker(owner))

    @property
    def registry(self) -> MlflowRegistry:
        """MLflow's registry, imported only where a step needs it."""
        from retroln.tracking.registry import MlflowRegistry

        return MlflowRegistry.of(self.settings)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder that is gone when the block ends."""
        make_folder(self.settings.work_dir)
        with tempfile.TemporaryDirectory(prefix="case-", dir=self.settings.work_dir) as folder:
            yield Path(folder)


@lru_cache(maxsize=4)
def open_workspace(settings: Settings) -> Workspace:
    """Open the catalog and both stores; one workspace per settings and process."""
    return Workspace(
        settings=settings,
        catalog=open_catalog(settings),
        source=open_store(settings.source_uri, settings, read_only=True),
        store=open_store(settings.store_uri, settings),
    )


def open_catalog(settings: Settings) -> Catalog:
    """The catalog alone, whatever the stores are; errors as `Catalog.open`."""
    password = settings.catalog_password
    return Catalog.open(settings.catalog_url, password.get_secret_value() if password else None)
