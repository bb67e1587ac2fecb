"""Removing a patient who took back consent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from retroln.cli.listing import tell_json
from retroln.settings import Settings

if TYPE_CHECKING:
    from retroln.steps.holdings import Holdings


@click.command()
@click.argument("patient")
@click.option("--reason", help="Why, as it shall stand in the record.")
@click.option("--by", help="Who records it, as it shall stand in the record.")
@click.option("--also", multiple=True, metavar="PATIENT", help="Another id of the same person.")
@click.option("--dry-run", is_flag=True, help="Show what holds the patient and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: one JSON document with every field.")
def withdraw(
    patient: str,
    reason: str | None,
    by: str | None,
    also: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove PATIENT, who took back consent, from everything; there is no way back.

    PATIENT is the patient's id in the source or, where ids are replaced, the pseudonym, matched whole. If the
    same person or image may be here under other ids, nothing is done before there is a word on each: --also,
    or `retroln review different`. A call that was cut off is finished by the same call again.
    """
    from retroln.steps import withdraw as step
    from retroln.steps.holdings import survey
    from retroln.steps.identity import Policy

    settings = Settings()
    policy = Policy.of(settings)
    patient = policy.patient(patient)
    if not dry_run and not (reason and by):
        raise click.UsageError("a withdrawal needs --reason and --by; --dry-run needs neither")
    if as_json and not dry_run:
        raise click.UsageError("--json goes with --dry-run")
    others = [policy.patient(one) for one in also]
    found = [survey(settings, one) for one in (patient, *others)]
    for one in found:
        step.require_known(one)
    if as_json:
        tell_json([asdict(one) for one in found])
        return
    for one in found:
        _tell(one)
    for link in step.undecided_links(found):
        click.echo(
            f"MAY BE HERE AS PATIENT {link.patient_id}, TOO: case {link.case_id} shows the same {link.what}."
            f" Say --also {link.patient_id}, or `retroln review different` if these are two people."
        )
    if dry_run or not (reason and by):
        click.echo("dry run: nothing was changed")
        return
    if not yes:
        click.confirm(f"Remove patient {' and '.join((patient, *others))} for good?", abort=True)
    step.withdraw(settings, patient, also=others, reason=reason, by=by)
    for one in found:
        click.echo(f"patient {one.patient_id} is withdrawn: {len(one.objects)} objects deleted")
        _warn(one)


def _tell(found: Holdings) -> None:
    if found.withdrawal:
        at = f"{found.withdrawal.at:%Y-%m-%d %H:%M}Z"
        click.echo(f"withdrawn already: {at} by {found.withdrawal.by}: {found.withdrawal.reason}")
    click.echo(f"patient {found.patient_id}, cases: {', '.join(found.cases) or 'none'}")
    _list("stored objects, deleted", (f"{info.key} ({info.size_bytes} bytes)" for info in found.objects))
    _list("rows of the catalog", (f"{row.name}: {row.detail} {row.action}" for row in found.rows))
    _list(
        "earlier scans of others that show the same image, emptied",
        (f"case {one.case_id}, revision {one.revision}, of {one.patient_id}" for one in found.copies),
    )
    _list("dataset versions, tombstoned", found.datasets)
    _list("folders on this machine, deleted", (str(path) for path in found.caches))
    _list("artifacts in MLflow, rows taken out", (f"run {one.run_id}: {one.path}" for one in found.traces))
    marked = (f"version {one.version} ({' and '.join(one.roles)})" for one in found.versions)
    _list("model versions trained or tested on the patient, marked", marked)
    _warn(found)


def _list(title: str, lines: Iterable[str]) -> None:
    shown = [f"  {line}" for line in lines]
    click.echo("\n".join([f"{title}: {len(shown)}", *shown]))


def _warn(found: Holdings) -> None:
    """What only people can do."""
    doomed = [
        *found.source,
        *(
            f"{name} (case {one.case_id} of {one.patient_id}, held as {one.reason})"
            for one in found.held_copies
            for name in one.source_uri.values()
        ),
    ]
    if doomed:
        _list("DELETE THESE IN THE SOURCE YOURSELF, RetroLN never writes there", doomed)
        if any(name.startswith("S-") for name in doomed):
            click.echo("`retroln source find S-...` says where each lies")
    for one in found.versions:
        if one.is_champion:
            click.echo(
                f"THE CHAMPION, version {one.version}, knows the patient ({' and '.join(one.roles)})."
                " It stays champion until people decide: `retroln rollback`, or promote a version"
                " trained without the patient."
            )
    for run_id in found.under_way:
        click.echo(
            f"A TRAINING MAY BE UNDER WAY on the patient's data: MLflow run {run_id}."
            " Cancel it, then withdraw again."
        )
    for link in found.linked:
        if link.told_apart and link.same_image:
            click.echo(
                f"note: case {link.case_id} shows the same image and stays: {link.patient_id} was told apart"
            )
    for remark in found.remarks:
        click.echo(f"note: {remark}")
