"""Train flow: freeze a dataset version, train, score the locked test set, register a candidate."""

from __future__ import annotations

from prefect import flow, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed

from flows.accounting import begin, finish, rename
from flows.fan_out import start, wait_for
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.errors import UnavailableError
from retroln.settings import Settings, TrainSpec
from retroln.steps.training import Candidate, Ticket
from retroln.tracking import links
from tasks import events, stages
from tasks.artifacts import show_link
from tasks.policy import settings_in_use

_PUBLISHED = TrainSpec()
_ATTEMPTS = 5  # a fold goes on from its checkpoint each time


@flow(name="train", flow_run_name="train")
def train(spec: TrainSpec = _PUBLISHED) -> State[Candidate]:
    """Train a candidate on every labelled, prepared case; the same data and spec train only once.

    Args:
        spec: How to train: the published network with its published budget, unless changed.
    """
    settings = settings_in_use()
    with begin(settings, "train", spec.model_dump(mode="json")) as run:
        if settings.fan_out == "workers":
            candidate = _on_workers(settings, spec)
        else:
            candidate = stages.train_candidate(settings, spec)
        _announce(settings, candidate)
        outcome = Outcome.SKIPPED if candidate.skipped else Outcome.DONE
        state = finish(run, "train", [CaseOutcome(m.case_id, outcome) for m in candidate.dataset.members])
        word = "is unchanged" if candidate.skipped else "is the new candidate"
        rename(f"train: version {candidate.version} {word}")
        state.data = candidate
        return state  # type: ignore[return-value]


def _on_workers(settings: Settings, spec: TrainSpec) -> Candidate:
    """Folds side by side on the GPU pool, then the locked test set there, then the registry from here."""
    begun = stages.begin_training(settings, spec)
    if isinstance(begun, Candidate):
        return begun
    show_link("mlflow-run", links.run_url(settings, begun.mlflow_run_id), "this training in MLflow")
    try:
        _until_done(settings, "train-fold", [{"fold": fold} for fold in spec.folds], begun)
        _until_done(settings, "train-score", [{}], begun)
        return stages.register(settings, begun)
    except Exception as error:
        stages.abandon(settings, begun, error)
        raise


def _until_done(settings: Settings, deployment: str, pieces: list[dict[str, int]], ticket: Ticket) -> None:
    """Run the pieces; those whose worker died are started again. One that fails by itself stops all."""
    given = {"ticket": ticket.model_dump(mode="json")}
    for attempt in range(_ATTEMPTS):
        started = [
            start(
                deployment,
                given | piece,
                _name(deployment, piece, ticket),
                key=f"{attempt}-{runtime.flow_run.get_id()}",
            )
            for piece in pieces
        ]
        ended = wait_for(started, settings)
        _require_none_failed(ended)
        pieces = [piece for piece, child in zip(pieces, ended, strict=True) if not _completed(child)]
        if not pieces:
            return
    raise UnavailableError(
        f"the workers of {deployment} died {_ATTEMPTS} times",
        fix="look at their logs; train again: it goes on",
    )


def _completed(child: FlowRun) -> bool:
    return bool(child.state and child.state.is_completed())


def _require_none_failed(children: list[FlowRun]) -> None:
    for child in children:
        if child.state and (child.state.is_failed() or child.state.is_cancelled()):
            raise RuntimeError(f"{child.name}: {child.state.name}, {child.state.message}")


def _name(deployment: str, piece: dict[str, int], ticket: Ticket) -> str:
    fold = f" fold {piece['fold']}" if "fold" in piece else ""
    return f"{deployment}{fold} of dataset {ticket.dataset_version[:8]}"


def _announce(settings: Settings, candidate: Candidate) -> None:
    events.dataset_published(settings, candidate.dataset.version, len(candidate.dataset.members))
    if not candidate.skipped:
        events.model_registered(settings, candidate.version)
    show_link("mlflow-version", links.version_url(settings, candidate.version), "the version in MLflow")


@flow(name="train-fold")
def train_fold(ticket: Ticket, fold: int) -> State[None]:
    """Train one fold on this worker's device. Started by the flow train.

    Args:
        ticket: Which dataset version, how, and in which MLflow run.
        fold: Number of the fold.
    """
    stages.train_fold(settings_in_use(), ticket, fold)
    return Completed(message=f"fold {fold} is trained")


@flow(name="train-score")
def train_score(ticket: Ticket) -> State[None]:
    """Bundle the folds and score them on the locked test set. Started by the flow train.

    Args:
        ticket: Which dataset version, how, and in which MLflow run.
    """
    stages.score(settings_in_use(), ticket)
    return Completed(message="the locked test set is scored")
