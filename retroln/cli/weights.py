"""Weights of TotalSegmentator: into the store, checked, shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retroln.cli.listing import as_json_option, tell_json
from retroln.counted import counted
from retroln.settings import Settings

if TYPE_CHECKING:
    from retroln.steps.weights import Bundle

_MIB = 1 << 20


@click.group()
def weights() -> None:
    """Bring TotalSegmentator's weights to machines without the internet, pinned by one hash."""


@weights.command("import")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FOLDER|ZIP...")
@click.option(
    "--stand-in", metavar="TEXT", help="These are not TotalSegmentator's own weights, because TEXT."
)
@click.option("--licence", metavar="TEXT", help="Terms of use to keep with them.")
def import_(sources: tuple[Path, ...], stand_in: str | None, licence: str | None) -> None:
    """Put the networks in FOLDER or ZIP (one or more) into the store as one bundle and print its sha256."""
    from retroln.steps import weights as step

    bundle = step.import_weights(Settings(), sources, stand_in=stand_in, licence=licence)
    _show(bundle)
    click.echo(f"to use it: RETROLN_LANDMARKS=totalseg RETROLN_TOTALSEG__WEIGHTS={bundle.sha256}")


@weights.command()
@click.argument("sha256", required=False)
def verify(sha256: str | None) -> None:
    """Read every byte of bundle SHA256 (by default the pinned one) in the store and in the copy here."""
    from retroln.steps import weights as step

    settings = Settings()
    bundle = step.verify(settings, sha256 or step.require(settings).sha256)
    _show(bundle)
    click.echo("every byte is as it was imported")


@weights.command("list")
@as_json_option
def list_(as_json: bool) -> None:
    """Show the bundles in the store; the one that settings pin is marked."""
    from retroln.steps import weights as step

    settings = Settings()
    found, pinned = step.bundles(settings), settings.totalseg.weights
    if as_json:
        tell_json([{**_facts(bundle), "pinned": bundle.sha256 == pinned} for bundle in found])
        return
    for bundle in found:
        _show(bundle, "  <- pinned" if bundle.sha256 == pinned else "")
    if not found:
        click.echo(f"no weights in {settings.store_uri}")


def _facts(bundle: Bundle) -> dict[str, Any]:
    return {"sha256": bundle.sha256, **bundle.manifest.model_dump(mode="json")}


def _show(bundle: Bundle, mark: str = "") -> None:
    from retroln.anatomy.totalseg_weights import NETWORKS

    manifest = bundle.manifest
    click.echo(f"{bundle.sha256}{mark}")
    for task in manifest.tasks:
        click.echo(f"  {task}: {NETWORKS[task].use}")
    click.echo(f"  {counted(len(manifest.files), 'file')}, {manifest.size_bytes / _MIB:.1f} MiB")
    click.echo(f"  STAND-IN: {manifest.stand_in}" if manifest.stand_in else "  not marked as a stand-in")
    click.echo(f"  licence: {manifest.licence}")
