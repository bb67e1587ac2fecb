"""`python -m infra.stand_in_weights`: make the stand-ins, or say where they lie already."""

from __future__ import annotations

from pathlib import Path

import click

from infra.stand_in_weights.cache import cached


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), help="Where to keep them instead of the cache.")
def main(folder: Path | None) -> None:
    """Train small networks on phantoms, in TotalSegmentator's layout; they stand in for its weights."""
    click.echo(cached(folder, tell=lambda text: click.echo(f"  {text}", err=True)))


if __name__ == "__main__":
    main()
