"""`retroln crop` and `retroln paste`: the region of one case or of a folder, and the way back."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import click

from retroln.cli.acceptance import accept_landmarks_of_one, reviewer, words_of
from retroln.cli.arguments import label_ids_option
from retroln.settings import Hu, LabelScheme

_path = click.Path(path_type=Path)
_OF_ONE_CASE = {
    "ct": "--ct",
    "vertebrae": "--vertebrae",
    "mask": "--mask",
    "case_id": "--case-id",
    "comment": "--accept-landmarks",
    "reviewer": "--reviewer",
}
_OF_A_FOLDER = {
    "input_dir": "--input-dir",
    "vertebrae_dir": "--vertebrae-dir",
    "mask_dir": "--mask-dir",
    "processes": "--processes",
    "limit": "--limit",
    "pattern": "--pattern",
    "accepted": "--accepted",
}


@click.command()
@click.option("--ct", type=_path, help="One case: CT in HU, .nii or .nii.gz, any orientation.")
@click.option("--vertebrae", type=_path, help="One case: label map, or folder of vertebrae_<LEVEL>.nii.gz.")
@click.option("--mask", type=_path, help="One case: lymph node labels on the CT's grid, cropped alike.")
@click.option("--case-id", help="One case: prefix of the outputs; by default the CT's file name.")
@click.option("--input-dir", type=_path, help="A folder: CTs <id>.nii.gz or <id>_0000.nii.gz.")
@click.option("--vertebrae-dir", type=_path, help="A folder: <id>.nii.gz, or <id>/vertebrae_<LEVEL>.nii.gz.")
@click.option("--mask-dir", type=_path, help="A folder: <id>.nii.gz; then every case must have one.")
@click.option("--processes", type=click.IntRange(1), help="A folder: cases at the same time.  [default: 1]")
@click.option("--limit", type=click.IntRange(1), help="A folder: only the first so many cases.")
@click.option("--pattern", help="A folder: only CTs whose names match, e.g. 'LN_*'.  [default: *]")
@accept_landmarks_of_one
@reviewer
@click.option(
    "--accepted",
    type=_path,
    help="A folder: CSV case_id,reviewer,comment of cases whose landmarks count as labelled.",
)
@click.option(
    "--output-dir",
    type=_path,
    required=True,
    help="Receives <id>_ct, <id>_mask, <id>_roi.json, and summary.json for a folder.",
)
@label_ids_option
@click.option("--no-normalize", is_flag=True, help="Keep HU in the stored type instead of scaling to 0..1.")
@click.option(
    "--hu-window",
    type=(float, float),
    default=(Hu().low, Hu().high),
    show_default=True,
    metavar="LOW HIGH",
    help="Hounsfield window that is scaled to 0..1.",
)
def crop(
    output_dir: Path,
    label_ids: LabelScheme,
    no_normalize: bool,
    hu_window: tuple[float, float],
    **inputs: Any,
) -> None:
    """Crop the L2-referenced region out of one CT, or out of every CT of a folder."""
    low, high = hu_window
    if not -inf < low < high < inf:
        raise click.BadParameter(f"LOW must be below HIGH, got {low:g} {high:g}", param_hint="--hu-window")
    options = {"label_ids": label_ids, "normalize": not no_normalize, "hu": Hu(low=low, high=high)}
    given = {name: value for name, value in inputs.items() if value is not None}
    if _is_folder(given):
        _crop_folder(output_dir, options, **given)
    else:
        _crop_one(output_dir, options, **given)


def _is_folder(given: dict[str, Any]) -> bool:
    """Which of the two forms the options are of.

    Raises:
        click.UsageError: of both, or one that is not complete.
    """
    one = [option for name, option in _OF_ONE_CASE.items() if name in given]
    folder = [option for name, option in _OF_A_FOLDER.items() if name in given]
    if one and folder:
        raise click.UsageError(f"{', '.join(one)} are of one case, {', '.join(folder)} of a folder")
    needed = ("input_dir", "vertebrae_dir") if folder else ("ct", "vertebrae")
    missing = [f"--{name.replace('_', '-')}" for name in needed if name not in given]
    if missing:
        other = "" if one or folder else "; for a folder --input-dir and --vertebrae-dir"
        raise click.UsageError(f"missing {' and '.join(missing)}{other}")
    return bool(folder)


def _crop_folder(
    output_dir: Path,
    options: dict[str, Any],
    input_dir: Path,
    vertebrae_dir: Path,
    mask_dir: Path | None = None,
    accepted: Path | None = None,
    **how: Any,
) -> None:
    from retroln.cli.folders import checked_pattern, work_through
    from retroln.steps.crop_folder import CropTool

    tool = CropTool(output_dir, **options)
    pattern = checked_pattern(how.get("pattern", "*"))
    cases = tool.list_cases(input_dir, vertebrae_dir, mask_dir, pattern, accepted)
    work_through(tool, cases, processes=how.get("processes", 1), limit=how.get("limit"))


def _crop_one(output_dir: Path, options: dict[str, Any], ct: Path, vertebrae: Path, **rest: Any) -> None:
    from retroln.steps.files import crop_files

    words = words_of(rest.pop("reviewer", None), rest.pop("comment", None))
    report = crop_files(ct, vertebrae, output_dir, words=words, **rest, **options)
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
    from retroln.report.cautions import recorded_cautions

    box = record["box_voxel"]
    assert isinstance(box, dict)
    click.echo(f"{record['case_id']}: voxels {box['start']} to {box['stop']} (RAS+), L2 by {record['rung']}")
    for sentence in recorded_cautions(record):
        click.echo(f"  {sentence}")
    inside = record["containment"]
    if isinstance(inside, dict):
        click.echo(f"  node voxels inside: {inside['inside_voxels']} of {inside['total_voxels']}")
    else:
        click.echo("  no node mask given")
    click.echo(f"-> {roi_file}")
