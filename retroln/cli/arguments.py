"""Arguments that several commands take."""

from __future__ import annotations

import click

reviewer_option = click.option(
    "--reviewer", required=True, help="Who decides, as it shall stand in the record."
)
comment_option = click.option("--comment", required=True, help="Why, as it shall stand in the record.")


def as_spelled(
    _: click.Context, __: click.Parameter, typed: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    """Callback of an id, or of several: as the catalog has it, however it is typed."""
    from retroln.steps.entry import spelled

    if isinstance(typed, tuple):
        return tuple(spelled(each) for each in typed)
    return typed and spelled(typed)
