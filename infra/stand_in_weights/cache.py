"""Stand-ins that were made before are found again by the hash of all that makes them."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.stand_in_weights.recipe import RECIPE
from retroln.files import cache_folder, sha256_file, sha256_json

VARIABLE = "RETROLN_STAND_IN_WEIGHTS"
_ROOT = Path(__file__).parents[2]
_SHORT = 16


def cached(folder: Path | None = None, tell: Callable[[str], None] = lambda text: None) -> Path:
    """A folder in TotalSegmentator's layout with the stand-in network; trained if it is not there.

    Args:
        folder: where versions are kept; by default what the variable RETROLN_STAND_IN_WEIGHTS names, or
            `retroln/stand-in-weights` in the user's cache folder.
    """
    from infra.stand_in_weights.learn import make

    root = folder or cache_root()
    root.mkdir(parents=True, exist_ok=True)
    target = root / content_hash()[:_SHORT]
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test sessions do not train the same
        if not target.is_dir():
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=root) as scratch:
                make(RECIPE, Path(scratch) / "whole", tell)
                (Path(scratch) / "whole").rename(target)
    return target


def cache_root() -> Path:
    """Outside the repository, so that a fresh checkout finds what another one made."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    return cache_folder() / "stand-in-weights"


def content_hash() -> str:
    """Hash of the recipe, the scripts that follow it, the optimiser, and the phantoms' code."""
    return sha256_json({path.relative_to(_ROOT).as_posix(): sha256_file(path) for path in _sources()})


def _sources() -> Iterator[Path]:
    yield from (Path(__file__).with_name(f"{name}.py") for name in ("cases", "learn", "recipe"))
    yield _ROOT / "retroln" / "nnunet" / "muon.py"
    yield from sorted((_ROOT / "retroln" / "imaging" / "phantom").glob("*.py"))
