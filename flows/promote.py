"""Promote flow: gates, a person's decision, the champion's move."""

from __future__ import annotations

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed, Failed
from pydantic import Field

from flows.accounting import change_own_run, rename
from retroln.errors import GateError, NotFoundError
from retroln.metrics.gate import GateDecision
from retroln.settings import Settings
from retroln.steps.review import in_words
from retroln.steps.workspace import open_workspace
from retroln.tracking import links
from tasks import events, stages
from tasks.artifacts import show_link, show_text
from tasks.policy import settings_in_use

_WEEK_S = 7 * 24 * 3600
_TAG = "version:"


class Review(RunInput):
    """A reviewer's decision on a version."""

    approve: bool = Field(description="On: make it champion. Off: reject it.")
    reviewer: str = Field(min_length=1, description="Who decides, as it shall stand in the audit.")
    comment: str = Field(min_length=1, description="Why, as it shall stand in the audit.")


@flow(name="promote", flow_run_name="promote")
def promote(version: int = 0, review: Review | None = None) -> State[GateDecision]:
    """Check the gates of a version, wait for a reviewer's decision, and make it champion.

    Args:
        version: Version of the model; 0 takes the one under alias candidate.
        review: The decision, when it has been taken already. Empty: the run suspends and asks.
    """
    settings = settings_in_use()
    version = version or _remembered() or _candidate(settings)
    _remember(version)
    gates = stages.check_gates(settings, version)
    shown = _show(settings, version, gates)
    if not gates.passed:
        rename(f"promote: version {version} fails its gates")
        refusal = GateError(
            f"version {version} fails its gates", got=in_words(gates.to_dict(), failed_only=True)
        )
        return Failed(name="Refused", message=str(refusal), data=refusal)
    if review is None:
        rename(f"promote: version {version} waits for a reviewer")
        form = Review.with_initial_data(description=shown)
        review = suspend_flow_run(wait_for_input=form, timeout=_WEEK_S, key=f"review-{version}")
    return _decide(settings, version, review, gates)


def _remembered() -> int | None:
    """The version that this run began with: another may be candidate by the time a reviewer answers."""
    numbers = [tag.removeprefix(_TAG) for tag in runtime.flow_run.get_tags() if tag.startswith(_TAG)]
    return int(numbers[0]) if numbers else None


def _remember(version: int) -> None:
    tag, tags = f"{_TAG}{version}", runtime.flow_run.get_tags()
    if tag not in tags:
        change_own_run(tags=[*tags, tag])


def _candidate(settings: Settings) -> int:
    version = open_workspace(settings).registry.get_alias("candidate")
    if version is None:
        raise NotFoundError("no version waits under alias candidate", fix="train one, or give its number")
    return version


def _decide(settings: Settings, version: int, review: Review, gates: GateDecision) -> State[GateDecision]:
    if not review.approve:
        stages.reject_version(settings, version, review.reviewer, review.comment)
        rename(f"promote: version {version} rejected by {review.reviewer}")
        return Completed(name="Rejected", message=f"by {review.reviewer}: {review.comment}", data=gates)
    decision = stages.promote_version(settings, version, review.reviewer, review.comment)
    events.model_promoted(settings, decision.version, decision.previous, decision.audit_id, decision.action)
    rename(f"promote: version {version} is champion")
    message = f"version {version} is champion, approved by {review.reviewer}"
    return Completed(message=message, data=gates)


def _show(settings: Settings, version: int, gates: GateDecision) -> str:
    """Gate figures and links, as an artifact and above the form."""
    rows = [f"- {'pass' if c.passed else 'FAIL'} {c.name}: {c.got} (needed {c.needed})" for c in gates.checks]
    address = links.version_url(settings, version)
    linked = f"\n\n[Version {version} in MLflow]({address})" if address else ""
    text = f"### {settings.model_name} version {version}\n\n" + "\n".join(rows) + linked
    show_text("promote-gates", text, "What the gates found")
    show_link("mlflow-version", address, f"version {version} in MLflow")
    return text
