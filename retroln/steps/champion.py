"""The champion as the audit has it, and the registry made to say the same.

The audit is the truth. Aliases and review tags in MLflow are its image: a decision writes its row first,
and everything after that is done here, as often as needed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from retroln.catalog.records import AuditRecord
from retroln.settings import Settings
from retroln.steps import review
from retroln.steps.workspace import Workspace, open_workspace
from retroln.tracking.registry import Alias, ModelVersion

RECONCILER = "reconcile"
"""Who stands in the audit for a champion that was put back."""
_TRIES = 10  # each further one means that somebody else decided in between
_log = logging.getLogger(__name__)


def current(rows: Sequence[AuditRecord]) -> AuditRecord | None:
    """The last row that moved the champion; None before the first promotion."""
    return next((row for row in reversed(rows) if row.moves_champion), None)


def way_back(rows: Sequence[AuditRecord]) -> int | None:
    """The version that a rollback would restore: whom the last promotion replaced, unless rejected since."""
    last = current(rows)
    if last is None or last.action != "promote":
        return None
    rejected = {r.version for r in rows if r.action == "reject" and r.audit_id > last.audit_id}
    return None if last.previous_version in rejected else last.previous_version


def about(rows: Sequence[AuditRecord], version: int) -> list[AuditRecord]:
    """The decisions about one version, oldest first; a rollback is about the version it took back."""
    return [row for row in rows if row.action in review.DECIDED and _subject(row) == version]


def follow_audit(settings: Settings) -> list[str]:
    """Make aliases and review tags say what the audit says; returns what had been changed by hand.

    What a crash left unfinished is finished without a word. A champion that no decision names is put
    back (or removed, before the first promotion), with an audit row `restore`.

    Raises:
        UnavailableError: MLflow or the catalog does not answer.
    """
    return carry_out(open_workspace(settings))


def carry_out(workspace: Workspace, decided: int | None = None) -> list[str]:
    """`follow_audit`; the version just `decided` loses its approval, whoever gave it."""
    remarks = _move_aliases(workspace)
    for remark in remarks:
        _log.warning(remark)  # before anything else can fail: the next try finds nothing to put right
    _finish_marks(workspace, decided)
    return remarks


def _move_aliases(workspace: Workspace) -> list[str]:
    remarks: list[str] = []
    before: dict[Alias, int | None] = {}
    rows = _rows(workspace)
    for _ in range(_TRIES):
        # Rows on both sides of the aliases: unless somebody decided meanwhile, these are what the last
        # row found or left.
        known, versions, rows = current(rows), _versions(workspace), _rows(workspace)
        if current(rows) != known:
            continue
        wanted, gone = _wanted(rows, versions)
        found = {alias: v.version for v in versions.values() for alias in v.aliases}
        if all(found.get(alias) == version for alias, version in wanted.items()):
            return remarks + gone
        by_hand = _moved_by_hand(versions, known, wanted, found, before)
        remarks += _put_right(workspace, known, wanted, found, by_hand)
        before = wanted  # what this wrote from an older row is nobody's hand
    return [*remarks, "aliases champion and previous do not stay as the audit has them; look who moves them"]


def _rows(workspace: Workspace) -> list[AuditRecord]:
    return workspace.catalog.audits(workspace.settings.model_name)


def _versions(workspace: Workspace) -> dict[int, ModelVersion]:
    return {version.version: version for version in workspace.registry.versions()}


def _wanted(
    rows: Sequence[AuditRecord], versions: Mapping[int, ModelVersion]
) -> tuple[dict[Alias, int | None], list[str]]:
    """Where the aliases belong, `previous` first, and what to say of a version that was deleted."""
    last = current(rows)
    wanted: dict[Alias, int | None] = {"previous": way_back(rows), "champion": last.version if last else None}
    gone = [
        f"{alias} is version {version} by the audit, but the registry has no such version any more"
        for alias, version in wanted.items()
        if version is not None and version not in versions
    ]
    return {alias: v if v in versions else None for alias, v in wanted.items()}, gone


def _moved_by_hand(
    versions: Mapping[int, ModelVersion],
    last: AuditRecord | None,
    wanted: Mapping[Alias, int | None],
    found: Mapping[str, int],
    before: Mapping[Alias, int | None],
) -> set[Alias]:
    """Aliases that stand elsewhere than a crash, or this function's own earlier round, can have left them."""
    moved: set[Alias] = set()
    for alias, version in wanted.items():
        old = found.get(alias)
        if old == version or (alias in before and old == before[alias]):
            continue
        strange = alias == "champion" and last is not None and old != last.previous_version
        if strange or last is None or _is_finished(last, versions):
            moved.add(alias)
    return moved


def _put_right(
    workspace: Workspace,
    last: AuditRecord | None,
    wanted: Mapping[Alias, int | None],
    found: Mapping[str, int],
    by_hand: Collection[Alias],
) -> list[str]:
    if "champion" in by_hand:
        _record_restore(workspace, wanted["champion"], found.get("champion"), last)
    for alias, version in wanted.items():
        if found.get(alias) == version:
            continue
        if version is None:
            workspace.registry.delete_alias(alias)
        else:
            workspace.registry.set_alias(alias, version)
    return [
        f"alias {alias} pointed to {_named(found.get(alias))} by hand; put back to {_named(wanted[alias])}"
        for alias in wanted
        if alias in by_hand
    ]


def _is_finished(last: AuditRecord, versions: Mapping[int, ModelVersion]) -> bool:
    """Whether the aliases had followed this row before: the tags that come after them say so.

    Without this, an alias put back by hand to the version before would look like a crash before the move.
    """
    version = versions.get(_subject(last) or 0)
    return version is not None and review.is_marked(version.tags, last)


def _record_restore(
    workspace: Workspace, version: int | None, old: int | None, last: AuditRecord | None
) -> None:
    reason = f"audit row {last.audit_id} says {_named(version)}" if last else "nothing was ever promoted"
    workspace.catalog.add_audit(
        action="restore",
        model_name=workspace.settings.model_name,
        version=version or 0,
        previous_version=old,
        reviewer=RECONCILER,
        comment=f"alias champion pointed to {_named(old)} without a decision; {reason}",
    )


def _finish_marks(workspace: Workspace, decided: int | None) -> None:
    """Write the tags of decisions that are not on their version yet."""
    registry = workspace.registry
    versions, rows = registry.versions(), _rows(workspace)
    for version in versions:
        told = about(rows, version.version)
        unmarked = [row for row in told if not review.is_marked(version.tags, row)]
        if version.version == decided:
            unmarked = unmarked or told[-1:]  # its tag `review.audit` is not to be trusted then
        if not unmarked:
            continue
        asked = review.read(version.tags, None)
        words = review.said(asked.reviewer, asked.comment)
        answered = words in [review.said(r.reviewer, r.comment) for r in unmarked]
        consume = answered or version.version == decided
        if "approved" in version.aliases and not asked.missing and not consume:
            continue  # a person asked anew since; that review is decided on its own
        review.mark(registry, version.version, unmarked[-1], consume=consume)


def _subject(row: AuditRecord) -> int | None:
    return row.previous_version if row.action == "rollback" else row.version


def _named(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"
