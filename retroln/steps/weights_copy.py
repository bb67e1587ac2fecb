"""This machine's copy of TotalSegmentator's weights: fetched once, checked by hash before it is used."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from retroln.anatomy import totalseg
from retroln.anatomy.totalseg_weights import Weights
from retroln.settings import Settings
from retroln.steps import weights
from retroln.steps.weights import copy_folder, get, key_of
from retroln.storage.open import open_store


def fetch(settings: Settings) -> Weights:
    """The pinned bundle on this machine's disk; fetched once, and every byte hashed once per process.

    Raises:
        MissingExtraError: TotalSegmentator is not installed here.
        UserError: the settings want a GPU that is not there.
        SettingsError, NotFoundError, UnavailableError: as `weights.require`.
        IntegrityError: likewise, and when a byte differs.
    """
    totalseg.require_installed()
    totalseg.device_of(settings.totalseg.device)
    return _fetched(settings)


@lru_cache(maxsize=4)
def _fetched(settings: Settings) -> Weights:
    bundle = weights.require(settings)
    copy = Weights(bundle.sha256, copy_folder(settings, bundle.sha256), bundle.manifest)
    if not copy.folder.is_dir():
        _download(settings, copy)
    copy.check()
    return copy


def _download(settings: Settings, copy: Weights) -> None:
    """Fetch beside the place and rename: other processes see the folder whole or not at all."""
    store, place = open_store(settings.store_uri, settings), copy.folder.parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=place) as scratch:
        whole = Path(scratch) / "whole"
        for name, known in copy.manifest.files.items():
            get(store, key_of(copy.sha256, name), whole / name, known.sha256)
        try:
            whole.rename(copy.folder)
        except OSError:  # another process was first
            if not copy.folder.is_dir():
                raise
