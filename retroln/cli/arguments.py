"""Arguments that several commands take."""

from __future__ import annotations

import click


def as_spelled(_: click.Context, __: click.Parameter, typed: str | None) -> str | None:
    """Callback of an id: as the catalog has it, however it is typed."""
    from retroln.steps.entry import spelled

    return typed and spelled(typed)
