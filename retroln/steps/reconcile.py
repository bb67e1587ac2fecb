"""Let the registry follow the audit, then decide what a reviewer asked for in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retroln.catalog.records import AuditRecord
from retroln.errors import ConflictError, GateError
from retroln.settings import Settings
from retroln.steps import champion, review
from retroln.steps.promote import Decision, caution, promote, reject
from retroln.steps.workspace import Workspace, open_workspace


@dataclass(frozen=True)
class Reconciled:
    """What a reconciliation found and did.

    Attributes:
        decision: the promotion that was carried out, if any.
        refused: (version, reason) of what was refused by the gates or rejected by the reviewer.
        waiting: what an approval still lacks, in words; None when none waits.
        remarks: what had been changed by hand and was put right, and what could not be done.
        current: the last row of the audit that moved the champion; None before the first promotion.
    """

    decision: Decision | None = None
    refused: tuple[tuple[int, str], ...] = ()
    waiting: str | None = None
    remarks: tuple[str, ...] = ()
    current: AuditRecord | None = None


def reconcile(settings: Settings) -> Reconciled:
    """Make the registry follow the audit and decide the version under the alias `approved`.

    Safe to run at any time, by several processes, and after a crash. A refused or unclear review
    never raises; it is told on the version and in the result.

    Raises:
        UnavailableError: MLflow or the catalog does not answer.
    """
    workspace = open_workspace(settings)
    remarks = tuple(champion.follow_audit(settings))
    version = workspace.registry.get_alias("approved")
    found = _decide(workspace, version) if version is not None else Reconciled()
    _tell_who_waits(workspace, version, found.waiting)
    current = champion.current(workspace.catalog.audits(settings.model_name))
    return replace(found, remarks=remarks + found.remarks, current=current)


def _decide(workspace: Workspace, version: int) -> Reconciled:
    """Decide on one approved version."""
    registry, settings = workspace.registry, workspace.settings
    rows = workspace.catalog.audits(settings.model_name)
    last, decided = champion.current(rows), champion.about(rows, version)
    asked = review.read(registry.tags(version), decided[-1] if decided else None)
    if last is not None and last.version == version:
        return _leave_champion(workspace, version, asked, decided)
    if asked.missing:
        return Reconciled(waiting="; ".join(asked.missing))
    try:
        if asked.wants == "reject":
            reject(settings, version, reviewer=asked.reviewer, comment=asked.comment)
            return Reconciled(refused=((version, f"rejected by {asked.reviewer}: {asked.comment}"),))
        decision = promote(settings, version, reviewer=asked.reviewer, comment=asked.comment)
        known = caution(settings, version)
        return Reconciled(decision, remarks=(known,) if known else ())
    except GateError as error:
        return Reconciled(refused=((version, f"{error.what}: {error.got}"),))
    except ConflictError as error:
        return Reconciled(remarks=(f"version {version} is not decided yet: {error.what}",))


def _leave_champion(
    workspace: Workspace, version: int, asked: review.Review, decided: Sequence[AuditRecord]
) -> Reconciled:
    """Consume an approval of the champion, and what its tags ask for: they must not act later."""
    review.drop_aliases(workspace.registry, version, "approved")
    for row in decided[-1:]:
        review.mark(workspace.registry, version, row)
    if asked.wants == "reject":
        return Reconciled(
            refused=((version, "it is the champion, which only `retroln rollback` takes away"),)
        )
    return Reconciled()


def _tell_who_waits(workspace: Workspace, version: int | None, text: str | None) -> None:
    """Say on the version what its review lacks, and take that away where nothing waits any more."""
    for found in workspace.registry.versions():
        told = found.tags.get(review.WAITING_TAG)
        if found.version == version and text is not None:
            if told != text:
                workspace.registry.set_tag(version, review.WAITING_TAG, text)
        elif told is not None:
            workspace.registry.delete_tag(found.version, review.WAITING_TAG)
