"""Gates, the champion's move, refusal, rejection and rollback, against a real (SQLite) MLflow registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retroln.catalog.records import AuditRecord
from retroln.errors import ConflictError, GateError, NotFoundError, UserError
from retroln.settings import Settings
from retroln.steps import promote
from retroln.steps.workspace import open_workspace
from retroln.tracking.registry import MlflowRegistry
from tests.stand_in import GOOD, POOR, register


@pytest.fixture
def registry(settings: Settings) -> MlflowRegistry:
    return open_workspace(settings).registry


def _audits(settings: Settings) -> list[AuditRecord]:
    return open_workspace(settings).catalog.audits(settings.model_name)


def _promoted(settings: Settings, folder: Path, figures: dict[str, Any] = GOOD) -> int:
    version = register(settings, folder, figures)
    promote.promote(settings, version, reviewer="Dr A", comment=f"good: {folder.name}")
    return version


def test_promotion_moves_champion_keeps_previous_and_writes_the_audit(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path
) -> None:
    first = _promoted(settings, tmp_path / "b1")
    second = register(settings, tmp_path / "b2")
    decision = promote.promote(settings, second, reviewer=" Dr B ", comment="better")
    assert registry.aliases() == {"champion": second, "previous": first}
    audits = _audits(settings)
    assert [(a.action, a.version, a.previous_version, a.reviewer) for a in audits] == [
        ("promote", first, None, "Dr A"),
        ("promote", second, first, "Dr B"),
    ]
    assert [a.follows for a in audits] == [0, audits[0].audit_id]
    assert (decision.audit_id, decision.version, decision.previous) == (audits[1].audit_id, second, first)
    assert audits[1].gate == decision.gate.to_dict()
    assert decision.gate.passed


def test_promoted_version_says_who_when_why_and_by_which_figures(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path
) -> None:
    version = _promoted(settings, tmp_path / "b1")
    (row,) = _audits(settings)
    said = {name: text for name, text in registry.tags(version).items() if name.startswith("review.")}
    assert said.pop("review.gates").startswith("test_patients 6 (needed at least 6), ")
    assert said == {
        "review.decision": "promoted",
        "review.reviewer": "Dr A",
        "review.comment": "good: b1",
        "review.at": row.at.isoformat(timespec="seconds"),
        "review.audit": str(row.audit_id),
    }
    assert said["review.at"].endswith("+00:00")


def test_version_that_fails_its_gates_is_refused_and_says_why(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path
) -> None:
    version = register(settings, tmp_path / "b1", POOR)
    with pytest.raises(GateError, match="sensitivity_ge10mm"):
        promote.promote(settings, version, reviewer="Dr A", comment="hurry")
    assert registry.aliases() == {"candidate": version}
    tags = registry.tags(version)
    assert tags["review.decision"] == "refused by gates"
    assert tags["review.refused"] == "sensitivity_ge10mm 0.5 (needed at least 0.8)"
    assert [(a.action, a.follows) for a in _audits(settings)] == [("refuse", None)]


def test_version_without_figures_is_refused_by_a_gate_that_says_so(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path
) -> None:
    version = register(settings, tmp_path / "b1")
    registry.delete_tag(version, promote.SUMMARY_TAG)
    (failed,) = promote.check(settings, version).checks
    assert (failed.passed, failed.got) == (False, f"version {version} has no test figures")
    with pytest.raises(GateError, match="no test figures"):
        promote.promote(settings, version, reviewer="Dr A", comment="made by hand")
    assert registry.get_alias("champion") is None


def test_candidate_is_measured_against_the_champion_of_the_audit(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path
) -> None:
    weak, strong = {**GOOD, "sensitivity_ge10mm": 0.85}, {**GOOD, "sensitivity_ge10mm": 0.99}
    first = _promoted(settings, tmp_path / "b1", weak)
    _promoted(settings, tmp_path / "b2", strong)
    third = register(settings, tmp_path / "b3", weak)
    registry.set_alias("champion", first)
    failed = [check.name for check in promote.check(settings, third).checks if not check.passed]
    assert failed == ["sensitivity_ge10mm_drop"]


def test_rollback_restores_previous_and_marks_withdrawn(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path
) -> None:
    first, second = _promoted(settings, tmp_path / "b1"), _promoted(settings, tmp_path / "b2")
    assert promote.rollback(settings, reviewer="Dr C", comment="misses nodes") == first
    assert registry.aliases() == {"champion": first}
    tags = registry.tags(second)
    assert (tags["review.withdrawn"], tags["review.decision"]) == ("true", "withdrawn")
    assert tags["review.reviewer"] == "Dr C"
    with pytest.raises(NotFoundError, match="no previous champion"):
        promote.rollback(settings, reviewer="Dr C", comment="again")
    promote.promote(settings, second, reviewer="Dr C", comment="it was right after all")
    assert registry.aliases() == {"champion": second, "previous": first}
    assert "review.withdrawn" not in registry.tags(second)
    ids = [a.audit_id for a in _audits(settings)]
    assert [a.follows for a in _audits(settings)] == [0, *ids[:-1]]


def test_rollback_before_any_promotion_is_refused(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="no promotion"):
        promote.rollback(settings, reviewer="Dr C", comment="nothing there")
    assert _audits(settings) == []


def test_champion_is_neither_promoted_twice_nor_rejected(settings: Settings, tmp_path: Path) -> None:
    version = _promoted(settings, tmp_path / "b1")
    with pytest.raises(ConflictError, match="champion already"):
        promote.promote(settings, version, reviewer="Dr A", comment="again")
    with pytest.raises(ConflictError, match="retroln rollback"):
        promote.reject(settings, version, reviewer="Dr A", comment="no")
    assert len(_audits(settings)) == 1


def test_rejected_version_loses_its_aliases(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path
) -> None:
    version = register(settings, tmp_path / "b1")
    promote.reject(settings, version, reviewer="Dr A", comment="motion in the test scans")
    assert registry.aliases() == {}
    assert registry.tags(version)["review.decision"] == "rejected"


def test_rejected_previous_champion_is_no_way_back(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path
) -> None:
    first, second = _promoted(settings, tmp_path / "b1"), _promoted(settings, tmp_path / "b2")
    promote.reject(settings, first, reviewer="Dr A", comment="it was wrong all along")
    assert registry.aliases() == {"champion": second}
    with pytest.raises(NotFoundError, match="no previous champion"):
        promote.rollback(settings, reviewer="Dr A", comment="back")


@pytest.mark.parametrize("words", [("", "why"), ("Dr A", " "), ("\n", "")])
def test_decision_without_reviewer_or_comment_is_refused_before_anything_happens(
    settings: Settings, registry: MlflowRegistry, tmp_path: Path, words: tuple[str, str]
) -> None:
    version = register(settings, tmp_path / "b1")
    before = registry.versions()
    reviewer, comment = words
    for attempt in (
        lambda: promote.promote(settings, version, reviewer=reviewer, comment=comment),
        lambda: promote.reject(settings, version, reviewer=reviewer, comment=comment),
        lambda: promote.rollback(settings, reviewer=reviewer, comment=comment),
    ):
        with pytest.raises(UserError, match="needs a reviewer and a comment"):
            attempt()
    assert registry.versions() == before
    assert _audits(settings) == []


@pytest.mark.parametrize("tag", ["", "no json", "[]", "{}", '{"stand_in": null}'])
def test_a_version_whose_tags_name_no_stand_in_is_none(tag: str) -> None:
    assert promote.stand_in_of({promote.SPEC_TAG: tag}) is None
    assert promote.stand_in_of({}) is None
