"""Arguments that several commands take."""

from __future__ import annotations

from typing import get_args

import click

from retroln.settings import Device, LabelScheme

reviewer_option = click.option(
    "--reviewer", required=True, help="Who decides, as it shall stand in the record."
)
comment_option = click.option("--comment", required=True, help="Why, as it shall stand in the record.")
label_ids_option = click.option(
    "--label-ids",
    type=click.Choice(get_args(LabelScheme)),
    default="totalseg-v2",
    show_default=True,
    help="Scheme of a vertebra label map.",
)
device_option = click.option(
    "--device",
    type=click.Choice(get_args(Device)),
    default="auto",
    show_default=True,
    help="auto takes a GPU if there is one.",
)


def as_spelled(
    _: click.Context, __: click.Parameter, typed: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    """Callback of an id, or of several: as the catalog has it, however it is typed."""
    from retroln.steps.entry import spelled

    if isinstance(typed, tuple):
        return tuple(spelled(each) for each in typed)
    return typed and spelled(typed)
