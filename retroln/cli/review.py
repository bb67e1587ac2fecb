"""Promotion, the way back, and the record of both."""

from __future__ import annotations

from dataclasses import asdict

import click

from retroln.cli.listing import as_json_option, tell_json
from retroln.settings import Settings

_reviewer = click.option("--reviewer", required=True, help="Who decides, as it shall stand in the audit.")
_comment = click.option("--comment", required=True, help="Why, as it shall stand in the audit.")


@click.command()
@click.argument("version", type=int)
@click.option("--reviewer", help="Who decides, as it shall stand in the audit.")
@click.option("--comment", help="Why, as it shall stand in the audit.")
@click.option("--reject", is_flag=True, help="Record a rejection instead.")
@click.option("--check", "only_check", is_flag=True, help="Show the gates and change nothing.")
def promote(version: int, reviewer: str | None, comment: str | None, reject: bool, only_check: bool) -> None:
    """Make VERSION the champion if its gates pass; the old champion becomes `previous`."""
    from retroln.steps import promote as step

    settings = Settings()
    for check in step.check(settings, version).checks:
        click.echo(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.got} (needed {check.needed})")
    if caution := step.caution(settings, version):
        click.echo(f"note: {caution}")
    if only_check:
        return
    if not reviewer or not comment:
        raise click.UsageError("a decision needs --reviewer and --comment; --check alone needs neither")
    if reject:
        step.reject(settings, version, reviewer=reviewer, comment=comment)
        click.echo(f"version {version} is rejected")
        return
    decision = step.promote(settings, version, reviewer=reviewer, comment=comment)
    click.echo(f"version {decision.version} is champion")


@click.command()
@_reviewer
@_comment
def rollback(reviewer: str, comment: str) -> None:
    """Put the previous champion back and mark the present one withdrawn."""
    from retroln.steps import promote as step

    click.echo(f"version {step.rollback(Settings(), reviewer=reviewer, comment=comment)} is champion again")


@click.command()
def reconcile() -> None:
    """Let the registry follow the audit, decide what was approved in MLflow, sweep what withdrawals left."""
    from retroln.steps.leftovers import sweep
    from retroln.steps.reconcile import reconcile as step

    settings = Settings()
    found, swept = step(settings), sweep(settings)
    for remark in (*found.remarks, *swept.remarks()):
        click.echo(f"note: {remark}")
    if found.decision:
        click.echo(f"version {found.decision.version} is promoted (audit row {found.decision.audit_id})")
    for version, reason in found.refused:
        click.echo(f"version {version} is refused: {reason}")
    if found.waiting:
        click.echo(f"an approval waits: {found.waiting}")
    if found.current:
        click.echo(f"champion: version {found.current.version} (audit row {found.current.audit_id})")
    else:
        click.echo("champion: none")
    swept.require_finished()


@click.command()
@as_json_option
def audit(as_json: bool) -> None:
    """Show every decision on the model, oldest first: who, when, why, and the gate figures."""
    from retroln.steps.review import in_words
    from retroln.steps.workspace import open_workspace

    settings = Settings()
    rows = open_workspace(settings).catalog.audits(settings.model_name)
    if as_json:
        tell_json([asdict(row) for row in rows])
        return
    for row in rows:
        before = "none" if row.previous_version is None else row.previous_version
        link = "" if row.follows is None else f", follows {row.follows or 'nothing'}"
        click.echo(
            f"{row.audit_id}  {row.at:%Y-%m-%d %H:%M}Z  {row.action} {row.version} (before: {before}{link})"
        )
        click.echo(f"    {row.reviewer}: {row.comment}")
        if figures := in_words(row.gate):
            click.echo(f"    {figures}")
