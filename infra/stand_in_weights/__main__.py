"""`python -m infra.stand_in_weights`: make the stand-in, or say where it lies already."""

from __future__ import annotations

from pathlib import Path

import click

from infra.stand_in_weights.cache import cached


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), help="Where to keep it instead of the cache.")
def main(folder: Path | None) -> None:
    """Train a small network on phantoms, in TotalSegmentator's layout; it stands in for its 3 mm weights."""
    click.echo(cached(folder, tell=lambda text: click.echo(f"  {text}", err=True)))


if __name__ == "__main__":
    main()
