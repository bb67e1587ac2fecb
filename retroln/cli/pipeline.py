"""The steps of the way of the data as commands: the same calls that the Prefect tasks make."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, get_args

import click

from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome
from retroln.cli.arguments import device_option
from retroln.cli.progress import FAILED_EXIT_CODE, progress, sentence
from retroln.counted import counted
from retroln.settings import Profile, Settings, TrainSpec
from retroln.steps import runs
from retroln.steps.claimed import this_process


@click.command()
def ingest() -> None:
    """Validate, hash and record every case of the source; unchanged ones are skipped."""
    from retroln.steps import ingest as step

    settings = Settings()
    entries = step.list_entries(settings)
    run = runs.Run.begin(settings, "ingest", {"source_uri": settings.source_uri})
    with run, progress("ingest", len(entries)) as tell:
        step.ingest(settings, entries, run_id=run.run_id, on_outcome=tell)
        _tell_end(*run.settle_cases(entry.case_id for entry in entries))


@click.command()
@click.option("--limit", type=click.IntRange(1), help="Take at most so many scans; the rest waits.")
@click.option("--again", is_flag=True, help="Also cut anew what was cut by another RETROLN_ROI.")
def prepare(limit: int | None, again: bool) -> None:
    """Find landmarks and region of every scan that waits, and store its crop."""
    from retroln.steps import prepare as step

    settings = Settings()
    if again:
        click.echo(f"{counted(step.reopen(settings), 'scan')} cut by another region", err=True)
    backlog = step.backlog(settings)
    left = _limited(backlog.left, limit)
    run = runs.Run.begin(settings, "prepare", {"limit": limit})
    with run, progress("prepare", len(left)) as tell:
        step.prepare(settings, left, run_id=run.run_id, owner=this_process(), on_outcome=tell)
        _settle(run, backlog, limit, step.said_of(settings, run.run_id))


def _folds(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    last = TrainSpec.model_fields["n_folds"].default - 1
    pieces = text.split(",")
    if len(set(pieces)) < len(pieces) or not set(pieces) <= {str(fold) for fold in range(last + 1)}:
        raise click.BadParameter(f"expected numbers from 0 to {last}, each once, got {text}")
    return tuple(int(piece) for piece in pieces)


@click.command()
@click.option("--profile", type=click.Choice(get_args(Profile)), default="reference", show_default=True)
@click.option(
    "--folds", default="0", show_default=True, callback=_folds, help="Folds to train, e.g. 0,1,2,3,4."
)
@click.option("--epochs", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--iterations", type=click.IntRange(1), default=250, show_default=True, help="Per epoch.")
@device_option
@click.option("--override-containment", is_flag=True, help="Train although labelled nodes lie outside.")
def train(profile: Profile, folds: tuple[int, ...], override_containment: bool, **options: Any) -> None:
    """Freeze a dataset version, train it, score the locked test set, register a candidate."""
    from retroln.steps import training

    spec = TrainSpec(profile=profile, folds=folds, override_containment=override_containment, **options)
    result = training.train_candidate(Settings(), spec, on_epoch=_tell_epoch)
    click.echo(f"version {result.version} is {'unchanged' if result.skipped else 'the new candidate'}")


@click.command()
@click.argument("version", type=int)
def evaluate(version: int) -> None:
    """Score VERSION of the model on its locked test set again and print the figures as JSON."""
    from retroln.steps import training

    click.echo(json.dumps(training.evaluate_version(Settings(), version), indent=2))


@click.command()
@click.option("--limit", type=click.IntRange(1), help="Take at most so many scans; the rest waits.")
def infer(limit: int | None) -> None:
    """Run the champion over every prepared scan that it has not seen."""
    from retroln.steps import infer as step

    settings = Settings()
    found = step.find_champion(settings)
    backlog = step.backlog(settings, found)
    left = _limited(backlog.left, limit)
    model = step.fetch(settings, found)
    run = runs.Run.begin(settings, "infer", {"version": model.version, "limit": limit})
    with run, progress(f"infer v{model.version}", len(left)) as tell:
        step.infer(settings, model, left, run_id=run.run_id, owner=this_process(), on_outcome=tell)
        if trained_on := backlog.notes[step.TRAINED_ON]:
            click.echo(f"{trained_on} skipped: version {model.version} was trained on them")
        for caution in model.cautions:
            click.echo(caution)
        _settle(run, backlog, limit)


def _limited(waiting: tuple[int, ...], limit: int | None) -> tuple[int, ...]:
    left = waiting[:limit]
    if len(left) < len(waiting):
        click.echo(f"--limit {limit}: {counted(len(waiting) - len(left), 'scan')} left waiting", err=True)
    return left


def _settle(run: runs.Run, backlog: runs.Backlog, limit: int | None, said: Sequence[str] = ()) -> None:
    _tell_end(*run.settle(backlog, limit), said)


def _tell_end(accounting: Accounting, outcomes: Sequence[CaseOutcome], said: Sequence[str] = ()) -> None:
    """The sum, what is to be said of cases that are done, and each case that is held or failed."""
    click.echo(sentence(accounting))
    for line in said:
        click.echo(f"  {line}")
    for outcome in outcomes:
        if outcome.outcome in (Outcome.QUARANTINED, Outcome.FAILED):
            click.echo(f"  {outcome.line}")
    if accounting.failed:
        sys.exit(FAILED_EXIT_CODE)


def _tell_epoch(epoch: dict[str, Any]) -> None:
    shown = ", ".join(f"{k} {v:.4g}" for k, v in epoch.items() if isinstance(v, float))
    click.echo(f"fold {epoch['fold']} epoch {epoch['epoch'] + 1}/{epoch['epochs']}: {shown}", err=True)
