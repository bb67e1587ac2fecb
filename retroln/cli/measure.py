"""`retroln measure`: one row per node of a label map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retroln.cli.arguments import label_ids_option
from retroln.counted import counted
from retroln.endings import has_ending
from retroln.errors import naming
from retroln.settings import LabelScheme

if TYPE_CHECKING:
    from retroln.imaging.volume import Volume


@click.command()
@click.option(
    "--labels", required=True, type=click.Path(path_type=Path), help="Node label map, .nii or .nii.gz."
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Ends in .csv: a table; else a JSON list.",
)
@click.option(
    "--vertebrae",
    type=click.Path(path_type=Path),
    help="Vertebra label map, or folder of vertebrae_<LEVEL>.nii.gz, on the same grid: adds the level.",
)
@click.option(
    "--organs",
    type=click.Path(path_type=Path),
    help="TotalSegmentator v2 `total` label map on the same grid: adds the station.",
)
@label_ids_option
@click.option(
    "--instances", is_flag=True, help="The values already number the nodes; do not split by contact."
)
def measure(
    labels: Path,
    output: Path,
    vertebrae: Path | None,
    organs: Path | None,
    label_ids: LabelScheme,
    instances: bool,
) -> None:
    """Measure each node: volume, short and long axis, RECIST class, centroid, station, level."""
    from retroln import files
    from retroln.anatomy import nodes, stations
    from retroln.imaging import nifti

    files.require_no_input(output, labels, vertebrae, organs)
    files.require_outside(output, vertebrae)
    volume = nifti.read_labels(labels)
    spine = _read_beside(volume, "vertebra map", vertebrae, partial(_read_vertebrae, scheme=label_ids))
    levels = stations.Levels.of(spine) if spine else None
    organ_map = _read_beside(volume, "organ map", organs, _read_organs)
    with naming(labels):
        measured = nodes.measure(volume, levels=levels, organs=organ_map, instances=instances)
    if has_ending(output.name, ".csv"):
        files.write_bytes(output, nodes.to_csv(measured).encode())
    else:
        files.write_json(output, [node.to_dict() for node in measured])
    click.echo(f"{counted(len(measured), 'node')} -> {output}")


def _read_beside(
    labels: Volume, what: str, path: Path | None, read: Callable[[Path], Volume]
) -> Volume | None:
    """Another map on the grid of the node labels; errors name its own file."""
    from retroln.imaging.geometry import require_same_grid

    if path is None:
        return None
    with naming(path):
        volume = read(path)
        require_same_grid(labels.grid, volume.grid, what=what, reference_name="the label map")
    return volume


def _read_organs(path: Path) -> Volume:
    from retroln.anatomy import stations
    from retroln.imaging import nifti

    volume = nifti.read_labels(path)
    stations.require_organs(volume)
    return volume


def _read_vertebrae(path: Path, scheme: LabelScheme) -> Volume:
    from retroln.anatomy import vertebrae
    from retroln.imaging.volume import Volume

    found = vertebrae.read(path, scheme)
    return Volume(found.to_label_map(), found.grid, found.grid)
