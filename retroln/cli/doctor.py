"""What works on this machine, and the fix for what does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import click

from retroln.cli.finding import Finding, tried
from retroln.cli.listing import as_json_option, tell_json
from retroln.cli.machine import folder_finding, machine_findings
from retroln.errors import SettingsError, install_from_checkout
from retroln.settings import Settings, misspelt

_EXTRAS = {
    "boto3": "s3",
    "psycopg": "postgres",
    "torch": "train",
    "nnunetv2": "train",
    "mlflow": "train",
    "TotalSegmentator": "landmarks",
    "prefect": "orchestrate",
    "pydicom": "dicom",
    "python-gdcm": "dicom",
    "pyjpegls": "dicom",
}
_TOO_NEW = {"fastapi": ((0, 151), "fastapi>=0.139,<0.151"), "sqlalchemy": ((2, 1), "sqlalchemy<2.1")}
_SHADOWS = ("argparse", "unittest2", "traceback2", "linecache2")


@click.command()
@click.option("--servers", is_flag=True, help="Use every server as the platform does: write, read, log in.")
@as_json_option
def doctor(servers: bool, as_json: bool) -> None:
    """Say what works on this machine and the fix for what does not."""
    findings = [*_versions(), *_traps(), *machine_findings(), _gpu(), *_misspelt(), *_places(servers)]
    if as_json:
        tell_json([asdict(finding) for finding in findings])
    for finding in () if as_json else findings:
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
        yield Finding(package, True, found or f"not installed ({install_from_checkout(extra)})")


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


def _arithmetic(settings: Settings) -> Iterator[Finding]:
    """What the demo's network computes in on this CPU, and the others if asked to; nothing without torch."""
    if _installed("torch"):
        from retroln.nnunet.arithmetic import choose

        choice = choose(settings.arithmetic)
        whose = "the demo's network" if settings.arithmetic == "auto" else "every network"
        fix = "unset RETROLN_ARITHMETIC" if choice.emulated else ""
        yield Finding(
            "arithmetic on this CPU",
            not choice.emulated,
            f"{choice.arithmetic} for {whose} ({choice.why})",
            fix,
        )


def _misspelt() -> Iterator[Finding]:
    """Variables that no setting has and that look like one."""
    for name, meant in misspelt().items():
        yield Finding(name, False, "no setting has this name", f"call it {meant}, or unset it")


def _places(servers: bool) -> Iterator[Finding]:
    """Where the settings point to: a look at each place, or real use of each."""
    try:
        settings = Settings()
    except SettingsError as error:
        yield Finding("settings", False, str(error).removesuffix(f"; fix: {error.fix}"), str(error.fix))
        return
    yield folder_finding("work folder", settings.work_dir, "RETROLN_WORK_DIR")
    if servers:
        from retroln.cli.connections import use_servers

        yield from use_servers(settings)
    else:
        yield from _answers(settings)
    yield from _arithmetic(settings)
    yield _landmarks(settings)


def _landmarks(settings: Settings) -> Finding:
    """Whether vertebrae can be made here, if they shall be."""
    if settings.landmarks == "delivered":
        return Finding("landmarks", True, "delivered with the CT; TotalSegmentator is not used")
    return tried("landmarks", "TotalSegmentator", partial(_weights, settings), "RETROLN_TOTALSEG__WEIGHTS")


def _weights(settings: Settings) -> str:
    from retroln.anatomy.totalseg import require_installed
    from retroln.steps.weights import require

    require_installed()
    bundle = require(settings)
    kind = "STAND-IN weights" if bundle.manifest.stand_in else "weights"
    return f"{settings.totalseg.quality}, {kind} {bundle.sha256[:16]} in the store"


def _look_into(uri: str, settings: Settings, *, read_only: bool) -> object:
    """The first object of a store, if it has any."""
    from retroln.storage.open import open_store

    return next(open_store(uri, settings, read_only=read_only).list(), None)


def _answers(settings: Settings) -> Iterator[Finding]:
    from retroln.steps.likeness import require_identified

    for name, uri in (("source", settings.source_uri), ("store", settings.store_uri)):
        use = partial(_look_into, uri, settings, read_only=name == "source")
        yield tried(name, uri, use, f"RETROLN_{name.upper()}_URI")
    yield tried(
        "catalog",
        settings.catalog_url,
        lambda: require_identified(settings),
        "RETROLN_CATALOG_URL",
    )
    if _installed("mlflow"):
        from retroln.tracking.registry import MlflowRegistry

        yield tried(
            "mlflow",
            settings.mlflow_uri,
            lambda: MlflowRegistry.of(settings).versions(),
            "RETROLN_MLFLOW_URI",
        )
