"""Train flow: freeze a dataset version, train, score the locked test set, register a candidate."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.accounting import begin, finish
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.settings import Settings, TrainSpec
from retroln.steps.training import Candidate
from tasks.stages import train_candidate


@flow(name="train", validate_parameters=False)
def train(settings: Settings | None = None, spec: TrainSpec | None = None) -> State[Candidate]:
    """Train a candidate on every labelled, prepared case; the same data and spec train only once."""
    settings, spec = settings or Settings(), spec or TrainSpec()
    with begin(settings, "train", spec.model_dump(mode="json")) as run:
        candidate = train_candidate(settings, spec)
        outcome = Outcome.SKIPPED if candidate.skipped else Outcome.DONE
        state = finish(run, "train", [CaseOutcome(m.case_id, outcome) for m in candidate.dataset.members])
        state.data = candidate
        return state  # type: ignore[return-value]
