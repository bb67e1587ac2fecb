"""The queue of cases whose landmarks a person must look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from retroln.cli.arguments import as_spelled, comment_option, reviewer_option
from retroln.cli.identity_review import different, retire
from retroln.cli.listing import as_json_option, tell_json
from retroln.cli.listing import show as show_tables
from retroln.files import write_bytes
from retroln.settings import LabelScheme, Settings
from retroln.steps.words import Words

if TYPE_CHECKING:
    from retroln.steps.landmark_review import Ruled


@click.group()
def review() -> None:
    """Look at what holds cases back, and say what is right: of their landmarks, or of whose they are.

    What is said is written down for good, with who and why, and the next `retroln ingest` and
    `retroln prepare` go by it.
    """


review.add_command(different)
review.add_command(retire)


@review.command("list")
@as_json_option
def list_(as_json: bool) -> None:
    """Show the cases that wait, the least trusted first."""
    from retroln.report.terminal import queue_table
    from retroln.steps.landmark_review import queue

    held = queue(Settings())
    if as_json:
        tell_json([{"scan": asdict(scan), "landmarks": found and asdict(found)} for scan, found in held])
    elif held:
        show_tables(queue_table(held))
    else:
        click.echo("no case waits for a look at its landmarks")


@review.command()
@click.argument("case", callback=as_spelled)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the PNG.")
@as_json_option
def show(case: str, picture: Path | None, as_json: bool) -> None:
    """Show numbers and findings of CASE and write a picture of its vertebrae.

    The picture goes to CASE-landmarks.png in this folder unless --picture names a place.
    """
    from retroln.report.terminal import level_table, word_table
    from retroln.steps.landmark_review import look

    seen = look(Settings(), case)
    path = picture or Path(f"{case}-landmarks.png")
    write_bytes(path, seen.picture)
    if as_json:
        tell_json({**asdict(replace(seen, picture=b"")), "picture": str(path)})
        return
    click.echo(f"{case}: {seen.scan.state.value}, {seen.scan.reason or 'not held'}")
    if seen.scan.detail:
        click.echo(f"  {seen.scan.detail}")
    if found := seen.landmarks:
        trust = "" if found.confidence is None else f", confidence {found.confidence:.2f}"
        click.echo(f"rung {found.rung}, {'anchored' if found.anchored else 'not anchored'}{trust}")
        for sentence in seen.cautions:
            click.echo(f"  {sentence}")
        show_tables(level_table(found.levels))
    if seen.words:
        show_tables(word_table(seen.words))
    click.echo(f"picture: {path}")


@review.command()
@click.argument("case", callback=as_spelled)
@reviewer_option
@comment_option
def accept(case: str, reviewer: str, comment: str) -> None:
    """Let the landmarks of CASE count as they are labelled, whatever the checks of prepare say.

    That overrules every reason of which `retroln review list` shows a case, but landmarks_missing and others
    where no L2 is labelled: those take `review correct`. What else holds a case, as not_ct, nobody overrules.
    """
    from retroln.steps import landmark_review as step

    _tell(step.accept(Settings(), case, Words(reviewer, comment)))


def _numbers(
    count: int,
) -> Callable[[click.Context, click.Parameter, str | None], tuple[float, ...] | None]:
    """A callback that reads `count` numbers with commas between them."""

    def read(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
        if text is None:
            return None
        try:
            values = tuple(float(piece) for piece in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count or not all(abs(value) < 1e6 for value in values):
            raise click.BadParameter(f"expected {count} numbers with commas between them, got {text!r}")
        return values

    return read


@review.command()
@click.argument("case", callback=as_spelled)
@reviewer_option
@comment_option
@click.option(
    "--vertebrae",
    type=click.Path(exists=True, path_type=Path),
    help="Corrected label map, or folder of levels.",
)
@click.option(
    "--label-ids",
    type=click.Choice(get_args(LabelScheme)),
    help="Scheme of the label map; RETROLN_LABEL_IDS without it.",
)
@click.option(
    "--l2",
    "l2_world_mm",
    metavar="X,Y,Z",
    callback=_numbers(3),
    help="Middle of L2's front surface, RAS+ world mm.",
)
@click.option(
    "--extent",
    "extent_world_mm",
    metavar="BOTTOM,TOP",
    callback=_numbers(2),
    help="With --l2: heights of L5's lower and T12's upper end, if the labels cannot say.",
)
def correct(
    case: str,
    reviewer: str,
    comment: str,
    vertebrae: Path | None,
    label_ids: LabelScheme | None,
    l2_world_mm: tuple[float, float, float] | None,
    extent_world_mm: tuple[float, float] | None,
) -> None:
    """Correct the landmarks of CASE: by a label map on the CT's grid, or by where L2 is."""
    from retroln.steps import landmark_review as step

    if (vertebrae is None) == (l2_world_mm is None) or (extent_world_mm and not l2_world_mm):
        raise click.UsageError("give either --vertebrae, or --l2 (with --extent where it is needed)")
    settings, words = Settings(), Words(reviewer, comment)
    if l2_world_mm:
        _tell(step.correct_by_point(settings, case, words, step.Point(l2_world_mm, extent_world_mm)))
    elif vertebrae:
        _tell(step.correct_by_map(settings, case, words, vertebrae, label_ids or settings.label_ids))


def _tell(ruled: Ruled) -> None:
    click.echo(f"{ruled.word.case_id}: noted as number {ruled.word.review_id}; prepare takes the case up")
    for sentence in ruled.cautions:
        click.echo(f"  {sentence}")
    if ruled.still_held:
        click.echo(f"it will be held again: {ruled.still_held}")
