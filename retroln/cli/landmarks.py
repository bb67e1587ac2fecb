"""`retroln landmarks`: the vertebrae of every CT of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from retroln.anatomy.segmenter import Device, Quality
from retroln.cli.arguments import device_option
from retroln.cli.folders import checked_pattern, work_through

_path = click.Path(path_type=Path)


@click.command()
@click.option("--input-dir", type=_path, required=True, help="CTs in HU, <id>.nii.gz or <id>_0000.nii.gz.")
@click.option("--output-dir", type=_path, required=True, help="Receives <id>.nii.gz and summary.json.")
@click.option("--per-level", is_flag=True, help="Write <id>/vertebrae_<LEVEL>.nii.gz instead.")
@click.option(
    "--quality",
    type=click.Choice(get_args(Quality)),
    default="full",
    show_default=True,
    help="fast works on coarser voxels.",
)
@device_option
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Each loads the networks once; on one GPU more than one seldom helps.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many cases; the rest is left out.")
@click.option("--pattern", default="*", show_default=True, help="Only files whose names match, e.g. 'LN_*'.")
def landmarks(
    input_dir: Path,
    output_dir: Path,
    per_level: bool,
    quality: Quality,
    device: Device,
    processes: int,
    limit: int | None,
    pattern: str,
) -> None:
    """Find the vertebrae T11 to S1 in every CT of a folder, and judge whether they are plausible.

    TotalSegmentator does it, with the weights that RETROLN_TOTALSEG__WEIGHTS pins in the store.
    """
    from retroln.steps import landmarks_folder as step

    networks = step.networks(quality)
    tool = step.LandmarksTool(output_dir, step.open_totalseg, quality, device, per_level, networks)
    work_through(tool, tool.list_cases(input_dir, checked_pattern(pattern)), processes=processes, limit=limit)
