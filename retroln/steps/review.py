"""What a reviewer asks for and what was decided, as MLflow version tags that a person can read.

The reviewer sets `review.decision` (approve or reject), `review.reviewer` and `review.comment`, then the
alias `approved`. A decision replaces them by what the audit says, so that nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retroln.catalog.records import AuditRecord
from retroln.errors import UserError
from retroln.tracking.registry import Alias, MlflowRegistry

DECISION_TAG = "review.decision"
REVIEWER_TAG = "review.reviewer"
COMMENT_TAG = "review.comment"
AT_TAG = "review.at"
AUDIT_TAG = "review.audit"
GATES_TAG = "review.gates"
REFUSED_TAG = "review.refused"
WAITING_TAG = "review.waiting"
WITHDRAWN_TAG = "review.withdrawn"

DECIDED = {
    "promote": "promoted",
    "refuse": "refused by gates",
    "reject": "rejected",
    "rollback": "withdrawn",
}
"""What `review.decision` says once an action of the audit has decided on a version."""

_ASKED: dict[str, Literal["approve", "reject"]] = {
    "approve": "approve",
    "approved": "approve",
    "reject": "reject",
    "rejected": "reject",
}
_TAG_CHARACTERS = 4000  # a tag is for reading; the audit holds the whole text


@dataclass(frozen=True)
class Review:
    """What the tags of a version ask for; `missing` says in words why nothing can be decided yet."""

    wants: Literal["approve", "reject"] | None
    reviewer: str
    comment: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """Who decides and why, as it shall stand in the audit."""

    reviewer: str
    comment: str

    @classmethod
    def of(cls, reviewer: str, comment: str) -> Words:
        """Without blanks around.

        Raises:
            UserError: one of them is empty.
        """
        words = cls(reviewer.strip(), comment.strip())
        if words.reviewer and words.comment:
            return words
        raise UserError(
            "a decision needs a reviewer and a comment",
            expected="who decides, and why",
            got=f"reviewer {words.reviewer!r}, comment {words.comment!r}",
            fix="state both; they stand in the audit for good",
        )


def read(tags: Mapping[str, str], decided: AuditRecord | None) -> Review:
    """The review that `tags` hold.

    Args:
        tags: of the version.
        decided: the last decision about this version; what it left in the tags asks for nothing.
    """
    word, reviewer, comment = (tags.get(t, "").strip() for t in (DECISION_TAG, REVIEWER_TAG, COMMENT_TAG))
    left_over = decided is not None and is_marked(tags, decided) and word == DECIDED[decided.action]
    wants = None if left_over else _ASKED.get(word.lower())
    missing = []
    if wants is None:
        found = f" (now: {word}{', decided already' if left_over else ''})" if word else ""
        missing.append(f"set {DECISION_TAG} to approve or reject{found}")
    if not reviewer:
        missing.append(f"set {REVIEWER_TAG} to who decides")
    if not comment:
        missing.append(f"set {COMMENT_TAG} to why")
    elif decided is not None and said(reviewer, comment) == said(decided.reviewer, decided.comment):
        missing.append(f"set {COMMENT_TAG} anew (this one belongs to audit row {decided.audit_id})")
    return Review(wants, reviewer, comment, tuple(missing))


def said(reviewer: str, comment: str) -> tuple[str, str]:
    """Reviewer and comment as tags hold them."""
    return reviewer.strip()[:_TAG_CHARACTERS], comment.strip()[:_TAG_CHARACTERS]


def is_marked(tags: Mapping[str, str], row: AuditRecord) -> bool:
    """Whether the version carries this decision, or a later one, in its tags already."""
    number = tags.get(AUDIT_TAG, "")
    return number.isdigit() and int(number) >= row.audit_id


def mark(registry: MlflowRegistry, version: int, row: AuditRecord, *, consume: bool = True) -> None:
    """Make a version's tags and aliases say what `row` decided about it; doing so twice changes nothing.

    `consume` removes the alias `approved`. The tag `review.audit` comes last: with it the decision is
    carried through.
    """
    drop_aliases(registry, version, *_consumed(row, consume))
    reviewer, comment = said(row.reviewer, row.comment)
    tags = {
        **_gate_tags(row),
        REVIEWER_TAG: reviewer,
        COMMENT_TAG: comment,
        AT_TAG: row.at.isoformat(timespec="seconds"),
        DECISION_TAG: DECIDED[row.action],
    }
    stale = {WAITING_TAG, GATES_TAG, REFUSED_TAG} | ({WITHDRAWN_TAG} if row.action == "promote" else set())
    for name in sorted(stale - set(tags)):
        registry.delete_tag(version, name)
    for name, value in {**tags, AUDIT_TAG: str(row.audit_id)}.items():
        registry.set_tag(version, name, value)


def drop_aliases(registry: MlflowRegistry, version: int, *aliases: Alias) -> None:
    """Remove those of `aliases` that point to `version`; another version keeps its own."""
    for alias in aliases:
        if registry.get_alias(alias) == version:
            registry.delete_alias(alias)


def in_words(gate: Mapping[str, Any], *, failed_only: bool = False) -> str:
    """The figures of a stored gate decision, in one line; "" without any."""
    checks = [check for check in gate.get("checks", ()) if not (failed_only and check["passed"])]
    return ", ".join(f"{c['name']} {c['got']} (needed {c['needed']})" for c in checks)


def _consumed(row: AuditRecord, consume: bool) -> tuple[Alias, ...]:
    candidate: tuple[Alias, ...] = ("candidate",) if row.action in ("promote", "reject") else ()
    return (*candidate, "approved") if consume else candidate


def _gate_tags(row: AuditRecord) -> dict[str, str]:
    if row.action == "rollback":
        return {WITHDRAWN_TAG: "true"}
    words = {GATES_TAG: in_words(row.gate)}
    if row.action == "refuse":
        words[REFUSED_TAG] = in_words(row.gate, failed_only=True)
    return {name: text[:_TAG_CHARACTERS] for name, text in words.items() if text}
