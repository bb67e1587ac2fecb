"""Options with which a person overrules the checks of landmarks in the file tools."""

from __future__ import annotations

import click

from retroln.steps.words import Words

_OVERRULED = (
    "Let the landmarks count as labelled, whatever the checks of landmarks and of the HU around them say; why"
    " stands in the record. A file that surely is no CT (not_ct) stays refused."
)
accept_landmarks = click.option("--accept-landmarks", "comment", metavar="WHY", help=_OVERRULED)
accept_landmarks_of_one = click.option(
    "--accept-landmarks", "comment", metavar="WHY", help=f"One case: {_OVERRULED[0].lower()}{_OVERRULED[1:]}"
)
reviewer = click.option(
    "--reviewer", metavar="WHO", help="With --accept-landmarks: who decides, as it shall stand in the record."
)


def words_of(reviewer: str | None, comment: str | None) -> Words | None:
    """Who overrules and why; None where nobody does.

    Raises:
        click.UsageError: one without the other.
    """
    if reviewer is None and comment is None:
        return None
    if reviewer is None or comment is None:
        raise click.UsageError("--accept-landmarks WHY and --reviewer WHO go together")
    return Words(reviewer, comment)
