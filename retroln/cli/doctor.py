"""What works on this machine, and the fix for what does not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click

from retroln.errors import RetroLNError
from retroln.settings import Settings

_EXTRAS = {
    "boto3": "s3",
    "psycopg": "postgres",
    "torch": "train",
    "nnunetv2": "train",
    "mlflow": "train",
    "TotalSegmentator": "landmarks",
    "prefect": "orchestrate",
}
_TOO_NEW = {"fastapi": ((0, 151), "fastapi>=0.139,<0.151"), "sqlalchemy": ((2, 1), "sqlalchemy<2.1")}
_SHADOWS = ("argparse", "unittest2", "traceback2", "linecache2")


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, what was seen, how to mend it."""

    name: str
    well: bool
    seen: str
    fix: str = ""


@click.command()
def doctor() -> None:
    """Say what works on this machine and the fix for what does not."""
    settings = Settings()
    findings = [*_versions(), *_traps(), _gpu(), *_weights(), *_servers(settings)]
    for finding in findings:
        mark = "ok  " if finding.well else "FIX "
        click.echo(
            f"{mark} {finding.name}: {finding.seen}" + (f"; fix: {finding.fix}" if finding.fix else "")
        )
    if not all(finding.well for finding in findings):
        sys.exit(11)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    python = sys.version_info
    yield Finding(
        "python",
        python[:2] == (3, 11),
        f"{python[0]}.{python[1]}",
        "" if python[:2] == (3, 11) else "use 3.11",
    )
    for package, extra in _EXTRAS.items():
        found = _installed(package)
        # an absent extra is a choice, not a fault
        yield Finding(package, True, found or f"not installed (pip install 'retroln[{extra}]' brings it)")


def _traps() -> Iterator[Finding]:
    for package, (limit, pin) in _TOO_NEW.items():
        found = _installed(package)
        if found:
            well = tuple(int(piece) for piece in found.split(".")[:2]) < limit
            yield Finding(f"{package} beside prefect", well, found, "" if well else f"pip install '{pin}'")
    shadows = [name for name in _SHADOWS if _installed(name)]
    fix = f"pip uninstall -y {' '.join(shadows)}" if shadows else ""
    yield Finding("stdlib shadows", not shadows, ", ".join(shadows) or "none", fix)


def _gpu() -> Finding:
    if find_spec("torch") is None:
        return Finding("gpu", True, "torch is not installed")
    from retroln.engine.warm import device_name

    return Finding("device", True, device_name())


def _weights() -> Iterator[Finding]:
    if _installed("TotalSegmentator"):
        folder = Path.home() / ".totalsegmentator" / "nnunet" / "results"
        found = sorted(path.name for path in folder.glob("Dataset29*")) if folder.exists() else []
        yield Finding(
            "TotalSegmentator weights",
            True,
            ", ".join(found) or "none: deliver vertebra label maps with the CT",
        )


def _servers(settings: Settings) -> Iterator[Finding]:
    from retroln.steps.workspace import open_workspace
    from retroln.storage.open import open_store

    yield _try(
        "source",
        settings.source_uri,
        lambda: next(open_store(settings.source_uri, settings).list(), None),
        "RETROLN_SOURCE_URI",
    )
    yield _try(
        "store",
        settings.store_uri,
        lambda: next(open_store(settings.store_uri, settings).list(), None),
        "RETROLN_STORE_URI",
    )
    shown = settings.catalog_url.rsplit("@", 1)[-1]
    yield _try(
        "catalog", shown, lambda: open_workspace(settings).catalog.count_by_state(), "RETROLN_CATALOG_URL"
    )
    if _installed("mlflow"):
        from retroln.tracking.registry import MlflowRegistry

        shown = settings.mlflow_uri.rsplit("@", 1)[-1]
        yield _try("mlflow", shown, lambda: MlflowRegistry.of(settings).versions(), "RETROLN_MLFLOW_URI")


def _try(name: str, place: str, use: Callable[[], object], variable: str) -> Finding:
    try:
        use()
    except RetroLNError as error:
        return Finding(name, False, f"{place}: {error}", f"check {variable}")
    except Exception as error:
        return Finding(
            name, False, f"{place}: {type(error).__name__}: {error}".split("\n")[0], f"check {variable}"
        )
    return Finding(name, True, place)
