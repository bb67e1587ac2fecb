"""`retroln crop` and `retroln paste`: the region of single files, and the way back."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import get_args

import click

from retroln.settings import Hu, LabelScheme

_path = click.Path(path_type=Path)


@click.command()
@click.option("--ct", type=_path, required=True, help="CT in HU, .nii or .nii.gz, any orientation.")
@click.option(
    "--vertebrae", type=_path, required=True, help="Label map, or folder of vertebrae_<LEVEL>.nii.gz."
)
@click.option("--output-dir", type=_path, required=True, help="Receives <id>_ct, <id>_mask, <id>_roi.json.")
@click.option("--mask", type=_path, help="Lymph node labels on the CT's grid, cropped alike.")
@click.option(
    "--label-ids",
    type=click.Choice(get_args(LabelScheme)),
    default="totalseg-v2",
    show_default=True,
    help="Scheme of a vertebra label map.",
)
@click.option("--no-normalize", is_flag=True, help="Keep HU in the stored type instead of scaling to 0..1.")
@click.option(
    "--hu-window",
    type=(float, float),
    default=(Hu().low, Hu().high),
    show_default=True,
    metavar="LOW HIGH",
    help="Hounsfield window that is scaled to 0..1.",
)
@click.option("--case-id", help="Prefix of the outputs; by default the CT's file name.")
def crop(
    ct: Path,
    vertebrae: Path,
    output_dir: Path,
    mask: Path | None,
    label_ids: LabelScheme,
    no_normalize: bool,
    hu_window: tuple[float, float],
    case_id: str | None,
) -> None:
    """Crop the L2-referenced region out of a CT, and of a node mask with it."""
    from retroln.steps.files import crop_files

    low, high = hu_window
    if not -inf < low < high < inf:
        raise click.BadParameter(f"LOW must be below HIGH, got {low:g} {high:g}", param_hint="--hu-window")
    report = crop_files(
        ct,
        vertebrae,
        output_dir,
        mask=mask,
        label_ids=label_ids,
        normalize=not no_normalize,
        hu=Hu(low=low, high=high),
        case_id=case_id,
    )
    _show(report.record, report.roi)


@click.command()
@click.option("--crop", "crop_file", type=_path, required=True, help="Label map on a crop's grid.")
@click.option("--roi", "roi_file", type=_path, required=True, help="The crop's <id>_roi.json.")
@click.option("--output", type=_path, required=True, help="Label map on the CT's delivered grid.")
def paste(crop_file: Path, roi_file: Path, output: Path) -> None:
    """Put a label map of a crop back on the grid of the whole CT."""
    from retroln.steps.files import paste_file

    paste_file(crop_file, roi_file, output)
    click.echo(f"{crop_file.name} -> {output}")


def _show(record: dict[str, object], roi_file: Path) -> None:
    box = record["box_voxel"]
    assert isinstance(box, dict)
    click.echo(f"{record['case_id']}: voxels {box['start']} to {box['stop']} (RAS+), L2 by {record['rung']}")
    if record["clamped_sides"]:
        click.echo(f"  clamped to the field of view: {', '.join(map(str, _items(record['clamped_sides'])))}")
    for finding in _items(record["findings"]):
        click.echo(f"  {finding}")
    inside = record["containment"]
    if isinstance(inside, dict):
        click.echo(f"  node voxels inside: {inside['inside_voxels']} of {inside['total_voxels']}")
    else:
        click.echo("  no node mask given")
    click.echo(f"-> {roi_file}")


def _items(value: object) -> list[object]:
    assert isinstance(value, list)
    return value
