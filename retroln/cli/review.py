"""Promotion and the way back."""

from __future__ import annotations

import click

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
    decision = step.check(settings, version)
    for check in decision.checks:
        click.echo(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.got} (needed {check.needed})")
    if only_check:
        return
    if not reviewer or not comment:
        raise click.UsageError("a decision needs --reviewer and --comment; --check alone needs neither")
    if reject:
        step.reject(settings, version, reviewer=reviewer, comment=comment)
        click.echo(f"version {version} is rejected")
        return
    step.promote(settings, version, reviewer=reviewer, comment=comment)
    click.echo(f"version {version} is champion")


@click.command()
@_reviewer
@_comment
def rollback(reviewer: str, comment: str) -> None:
    """Put the previous champion back and mark the present one withdrawn."""
    from retroln.steps import promote as step

    click.echo(f"version {step.rollback(Settings(), reviewer=reviewer, comment=comment)} is champion again")
