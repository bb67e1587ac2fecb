"""nnU-Net's folders and process settings, which it takes from the environment."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retroln import machine
from retroln.errors import MissingExtraError, install_from_checkout

# nnU-Net reads these two counts when it is imported; its own defaults (8 and 12) suit a GPU server.
_PROCESSES = ("nnUNet_def_n_proc", "nnUNet_n_proc_DA")
_PACKAGES = ("retroln", "nnunetv2", "torch", "dynamic-network-architectures", "batchgeneratorsv2", "numpy")


@dataclass(frozen=True)
class Folders:
    """nnU-Net's three folders, siblings under one root that belongs to one dataset version and profile."""

    raw: Path
    preprocessed: Path
    results: Path

    @property
    def root(self) -> Path:
        """The folder that holds the three."""
        return self.raw.parent


def activate(root: Path) -> Folders:
    """Create the folders under `root` and point nnU-Net at them, for this process and its children.

    nnU-Net 2.8 looks its paths up at each use, so a later call moves it to another root.

    Raises:
        MissingExtraError: nnU-Net or torch is not installed.
    """
    _require_installed()
    base = root.resolve()
    folders = Folders(base / "raw", base / "preprocessed", base / "results")
    for name in ("raw", "preprocessed", "results"):
        folder: Path = getattr(folders, name)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder)
    for name in _PROCESSES:
        os.environ.setdefault(name, str(min(12, machine.cores())))
    return folders


def versions() -> dict[str, str]:
    """Installed versions of what decides a network's output."""
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what nnU-Net and its libraries print, and the warnings of their own making."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _require_installed() -> None:
    for package in ("nnunetv2", "torch"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtraError(
                f"{package} is not installed", fix=install_from_checkout("train")
            ) from error
