"""How the folder tools run and what they say: notices, a bar, a table, each held case, an exit code."""

from __future__ import annotations

import sys
from pathlib import PurePosixPath

import click

from retroln.catalog.accounting import Outcome
from retroln.cli.listing import show
from retroln.cli.progress import FAILED_EXIT_CODE, progress, sentence
from retroln.errors import InputError
from retroln.steps.folder_ledger import Entry
from retroln.steps.folder_listing import Listing, shown
from retroln.steps.folders import Report, Tool, run_folder


def work_through(tool: Tool, listing: Listing, *, processes: int, limit: int | None) -> None:
    """Do every case and say what came of it; held or failed cases give an exit code of their own."""
    _tell_listing(listing)
    taken = len(listing.cases[:limit])
    _tell_left_out(len(listing.cases) - taken, limit)
    with progress(tool.command, taken) as tell:
        report = run_folder(tool, listing, processes=processes, limit=limit, on_outcome=tell)
    _tell_report(report, tool.command)
    _tell_left_out(report.left_out, limit)
    if report.accounting.failed:
        sys.exit(FAILED_EXIT_CODE)
    if report.accounting.quarantined:
        sys.exit(InputError.exit_code)


def checked_pattern(text: str) -> str:
    """A pattern that stays in its folder.

    Raises:
        click.BadParameter: it does not.
    """
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts:
        expected = "expected a pattern below the folder, such as 'LN_*' or '*/*.nii.gz'"
        raise click.BadParameter(expected, param_hint="--pattern")
    return text


def _tell_listing(listing: Listing) -> None:
    if listing.ignored:
        _warn(f"ignored, no .nii or .nii.gz: {shown(listing.ignored)}")
    for part, names in listing.unmatched.items():
        if names:
            _warn(f"{part} without a CT of that id: {shown(names)}")


def _tell_left_out(count: int, limit: int | None) -> None:
    if count:
        _warn(f"--limit {limit}: {count} of {count + (limit or 0)} cases are LEFT OUT of this run")


def _warn(text: str) -> None:
    click.secho(f"note: {text}", fg="yellow", err=True)


def _tell_report(report: Report, command: str) -> None:
    from retroln.report.cautions import by_sentence, recorded_cautions
    from retroln.report.terminal import stage_table

    show(stage_table({command: report.accounting}, "Cases"))
    usable = [entry for entry in report.entries if entry.outcome in (Outcome.DONE, Outcome.SKIPPED)]
    for line in by_sentence((entry.case_id, recorded_cautions(entry.facts)) for entry in usable):
        click.echo(line)
    for entry in report.entries:
        _tell_case(entry)
    click.echo(f"{sentence(report.accounting)} -> {report.summary}")


def _tell_case(entry: Entry) -> None:
    nodes = entry.facts.get("node_voxels")
    if entry.outcome in (Outcome.QUARANTINED, Outcome.FAILED):
        click.echo(f"{entry.case_id} {entry.outcome.value} ({entry.reason}): {entry.detail}")
    elif nodes and nodes["inside_voxels"] < nodes["total_voxels"]:
        inside, total = nodes["inside_voxels"], nodes["total_voxels"]
        click.echo(f"{entry.case_id}: only {inside} of {total} node voxels lie inside the region")
