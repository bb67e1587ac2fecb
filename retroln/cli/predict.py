"""Run a model bundle over one CT from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from retroln.cli.acceptance import accept_landmarks, reviewer, words_of
from retroln.cli.arguments import device_option, label_ids_option
from retroln.counted import counted
from retroln.settings import AskedArithmetic, Device, LabelScheme

_file = click.Path(exists=False, path_type=Path)


@click.command()
@click.option("--ct", type=_file, required=True, help="CT in Hounsfield units (NIfTI).")
@click.option("--vertebrae", type=_file, required=True, help="Label map, or folder vertebrae_<LEVEL>.nii.gz.")
@click.option("--bundle", type=_file, required=True, help="Folder of a model bundle.")
@click.option("--output", type=_file, required=True, help="Label map to write, on the CT's own grid.")
@label_ids_option
@device_option
@click.option(
    "--arithmetic",
    type=click.Choice(get_args(AskedArithmetic)),
    default="auto",
    show_default=True,
    envvar="RETROLN_ARITHMETIC",
    help="Of the network on a CPU; auto takes bf16 for the demo's network where the CPU is faster in it.",
)
@accept_landmarks
@reviewer
def predict(
    ct: Path,
    vertebrae: Path,
    bundle: Path,
    output: Path,
    label_ids: LabelScheme,
    device: Device,
    arithmetic: AskedArithmetic,
    reviewer: str | None,
    comment: str | None,
) -> None:
    """Find nodes in one CT: crop referenced to L2, predict, paste back, write one label per node."""
    from retroln.report.cautions import stand_in_caution
    from retroln.steps.predict import predict_file

    report = predict_file(
        ct,
        vertebrae,
        bundle,
        output,
        label_ids=label_ids,
        device=device,
        arithmetic=arithmetic,
        words=words_of(reviewer, comment),
    )
    for sentence in report.cautions:
        click.echo(f"  {sentence}")
    if report.roi:
        click.echo(f"-> {report.roi}")
    caution = f". {stand_in_caution(report.stand_in)}" if report.stand_in else ""
    click.echo(f"{output}: {counted(report.nodes, 'node')}{caution}")
