"""`retroln review`: a person's word on whose a case is."""

from __future__ import annotations

import click

from retroln.cli.arguments import as_spelled, comment_option, reviewer_option
from retroln.counted import counted
from retroln.settings import Settings
from retroln.steps.words import Words


@click.command()
@click.argument("case", callback=as_spelled)
@click.option("--patient", required=True, help="Whose the case is, as `retroln status CASE` shows it.")
@reviewer_option
@comment_option
def retire(case: str, patient: str, reviewer: str, comment: str) -> None:
    """Say that CASE was taken in wrongly, as a CT that was filed under another patient.

    What is stored and derived of it is deleted, unless a dataset version holds it, and the case is held as
    `retired`. What the source delivers of it from now on, under whatever patient, is taken in as new.
    """
    from retroln.steps import retire as step
    from retroln.steps.identity import Policy

    settings = Settings()
    patient = Policy.of(settings).patient(patient)
    done = step.retire(settings, case, patient, Words(reviewer, comment))
    click.echo(f"{case} of patient {patient} is retired: {counted(len(done.deleted), 'object')} deleted")
    for version in done.datasets:
        click.echo(
            f"dataset version {version[:16]} holds a scan of it, which stays stored; another patient's case"
            " of the same image still needs `retroln review different`"
        )


@click.command()
@click.argument("cases", nargs=-1, required=True, callback=as_spelled)
@reviewer_option
@comment_option
def different(cases: tuple[str, ...], reviewer: str, comment: str) -> None:
    """Say that CASES, two or more, are of different people, though they share an image or an id.

    For cases held as same_image or same_person: name the held case and the one that its message names. From
    then on their patients are trained on, tested on and withdrawn apart. It cannot be unsaid; a copy that
    was let in by it goes with `retroln review retire`.
    """
    from retroln.steps.likeness import tell_apart, unlike

    settings = Settings()
    strangers = unlike(settings, cases)
    held = tell_apart(settings, cases, reviewer, comment)
    click.echo(f"noted: {', '.join(cases)} are of different people")
    for one, other in strangers:
        click.echo(
            f"nothing is known that {one} and {other} have in common; check that these are the ids meant"
        )
    for case in held:
        click.echo(f"{case} was held for it; the next run takes it up")
