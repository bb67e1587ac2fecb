"""The registry follows the audit: approvals by tags, crashes, hands on the aliases (SQLite MLflow)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from retroln.catalog.records import AuditRecord
from retroln.errors import UnavailableError
from retroln.settings import Settings
from retroln.steps import promote
from retroln.steps.champion import follow_audit
from retroln.steps.reconcile import Reconciled, reconcile
from retroln.steps.workspace import open_workspace
from retroln.tracking.registry import MlflowRegistry
from tests.stand_in import GOOD, POOR, approve, register

Make = Callable[..., int]


@pytest.fixture(scope="module")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def settings(tmp_path: Path, mlflow_folder: Path) -> Settings:
    """A catalog and a model of its own; one MLflow for all, because making its database takes seconds."""
    return Settings(
        source_uri=f"file://{tmp_path}/source",
        store_uri=f"file://{tmp_path}/store",
        catalog_url=f"sqlite:///{tmp_path}/catalog.db",
        mlflow_uri=f"sqlite:///{mlflow_folder}/mlflow.db",
        mlflow_artifacts=str(mlflow_folder / "artifacts"),
        work_dir=tmp_path / "work",
        model_name=tmp_path.name,
    )


@pytest.fixture
def registry(settings: Settings) -> MlflowRegistry:
    return open_workspace(settings).registry


@pytest.fixture
def make(settings: Settings, tmp_path: Path) -> Make:
    """Register a version (with `promoted=True`: and make it champion); versions count from 1."""
    numbers = iter(range(1, 10))

    def made(figures: dict[str, Any] = GOOD, promoted: bool = False) -> int:
        version = register(settings, tmp_path / f"bundle{next(numbers)}", figures)
        if promoted:
            promote.promote(settings, version, reviewer="Dr P", comment=f"promoted {version}")
        return version

    return made


def _rows(settings: Settings) -> list[AuditRecord]:
    return open_workspace(settings).catalog.audits(settings.model_name)


def _actions(settings: Settings) -> list[tuple[str, int, int | None]]:
    return [(row.action, row.version, row.previous_version) for row in _rows(settings)]


def _require_calm(settings: Settings) -> None:
    """Another reconciliation finds nothing to do and changes nothing."""
    registry = open_workspace(settings).registry
    before, rows = registry.versions(), _rows(settings)
    again = reconcile(settings)
    assert (again.decision, again.refused, again.waiting, again.remarks) == (None, (), None, ())
    assert (registry.versions(), _rows(settings)) == (before, rows)


class Outage:
    """MLflow goes away at the n-th write that follows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left = at
        for name in ("set_alias", "delete_alias", "set_tag", "delete_tag"):
            monkeypatch.setattr(MlflowRegistry, name, self._counted(getattr(MlflowRegistry, name)))

    def _counted(self, real: Callable[..., None]) -> Callable[..., None]:
        def write(*arguments: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise UnavailableError("MLflow is away")
            real(*arguments)

        return write


class TestApprovals:
    def test_approval_by_tags_and_alias_is_promoted(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        version = make()
        approve(settings, version, decision=" Approved", reviewer="Dr A", comment="all pages seen")
        found = reconcile(settings)
        (row,) = _rows(settings)
        assert (row.action, row.version, row.reviewer, row.comment) == (
            "promote",
            version,
            "Dr A",
            "all pages seen",
        )
        assert found.decision is not None
        assert (found.decision.version, found.decision.audit_id) == (version, row.audit_id)
        assert found.current == row
        assert registry.aliases() == {"champion": version}
        assert registry.tags(version)["review.decision"] == "promoted"
        _require_calm(settings)

    def test_nothing_asked_is_nothing_done(self, settings: Settings, make: Make) -> None:
        assert reconcile(settings) == Reconciled()
        make()
        assert reconcile(settings) == Reconciled()

    @pytest.mark.parametrize(
        ("asked", "lacks"),
        [
            ({"decision": None}, "set review.decision to approve or reject"),
            ({"decision": "maybe"}, "set review.decision to approve or reject (now: maybe)"),
            ({"reviewer": " "}, "set review.reviewer to who decides"),
            ({"comment": None}, "set review.comment to why"),
        ],
    )
    def test_incomplete_review_waits_and_says_what_it_lacks(
        self, settings: Settings, registry: MlflowRegistry, make: Make, asked: dict[str, Any], lacks: str
    ) -> None:
        version = make()
        approve(settings, version, **asked)
        assert reconcile(settings) == Reconciled(waiting=lacks)
        assert registry.tags(version)["review.waiting"] == lacks
        assert registry.get_alias("approved") == version
        assert _rows(settings) == []
        approve(settings, version)
        assert reconcile(settings).decision is not None
        assert "review.waiting" not in registry.tags(version)

    def test_waiting_is_taken_back_when_the_alias_moves_on(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        first, second = make(), make()
        approve(settings, first, comment=None)
        reconcile(settings)
        approve(settings, second)
        assert reconcile(settings).waiting is None
        assert "review.waiting" not in registry.tags(first)
        assert registry.get_alias("champion") == second

    def test_rejection_is_recorded_and_consumed(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        version = make()
        approve(settings, version, decision="Reject", comment="misses nodes")
        assert reconcile(settings).refused == ((version, "rejected by Dr A: misses nodes"),)
        assert _actions(settings) == [("reject", version, None)]
        assert registry.aliases() == {}
        _require_calm(settings)

    def test_gate_failure_is_told_and_consumed_not_raised(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        champion, version = make(promoted=True), make(POOR)
        approve(settings, version)
        found = reconcile(settings)
        ((refused, reason),) = found.refused
        assert refused == version
        assert "sensitivity_ge10mm: got 0.5, needed at least 0.8" in reason
        assert "sensitivity_ge10mm 0.5" in registry.tags(version)["review.refused"]
        assert registry.aliases() == {"champion": champion, "candidate": version}
        assert found.current is not None
        assert found.current.version == champion
        _require_calm(settings)

    def test_audit_tag_set_by_hand_does_not_keep_an_approval_alive(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        version = make(POOR)
        registry.set_tag(version, "review.audit", "99")
        approve(settings, version)
        reconcile(settings)
        assert registry.get_alias("approved") is None
        assert registry.tags(version)["review.audit"] == str(_rows(settings)[-1].audit_id)
        _require_calm(settings)

    def test_approval_of_the_champion_is_consumed_and_cannot_act_later(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        champion = make(promoted=True)
        approve(settings, champion, comment="still fine")
        found = reconcile(settings)
        assert (found.decision, found.refused, found.waiting, found.remarks) == (None, (), None, ())
        assert registry.aliases() == {"champion": champion}
        assert len(_rows(settings)) == 1
        make(promoted=True)
        registry.set_alias("approved", champion)
        assert reconcile(settings).decision is None
        assert len(_rows(settings)) == 2

    def test_champion_cannot_be_rejected_in_mlflow(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        champion = make(promoted=True)
        approve(settings, champion, decision="reject")
        assert "retroln rollback" in reconcile(settings).refused[0][1]
        assert registry.aliases() == {"champion": champion}
        assert registry.tags(champion)["review.decision"] == "promoted"
        assert len(_rows(settings)) == 1


class TestLeftOverTags:
    @pytest.fixture
    def decided(self, request: pytest.FixtureRequest, settings: Settings, make: Make) -> int:
        """A version that is not champion, last decided on as the parameter says."""
        if request.param == "refused by gates":
            version = make(POOR)
            approve(settings, version)
            reconcile(settings)
        elif request.param == "rejected":
            version = make()
            approve(settings, version, decision="rejected")
            reconcile(settings)
        elif request.param == "promoted":
            version = make(promoted=True)
            make(promoted=True)
        else:
            make(promoted=True)
            version = make(promoted=True)
            promote.rollback(settings, reviewer="Dr C", comment="misses nodes")
        return version

    kinds = pytest.mark.parametrize(
        "decided", ["promoted", "rejected", "refused by gates", "withdrawn"], indirect=True
    )

    @kinds
    def test_alias_alone_decides_nothing(
        self, settings: Settings, registry: MlflowRegistry, decided: int
    ) -> None:
        rows = _rows(settings)
        registry.set_alias("approved", decided)
        waiting = reconcile(settings).waiting
        assert waiting is not None
        assert waiting.startswith("set review.decision to approve or reject (now: ")
        assert _rows(settings) == rows
        assert registry.tags(decided)["review.waiting"] == waiting

    @kinds
    def test_words_of_an_earlier_decision_do_not_stand_for_a_new_one(
        self, settings: Settings, decided: int
    ) -> None:
        rows = _rows(settings)
        approve(settings, decided, reviewer=None, comment=None)
        assert (reconcile(settings).waiting or "").startswith("set review.comment anew")
        assert _rows(settings) == rows

    @pytest.mark.parametrize("decided", ["promoted", "rejected", "withdrawn"], indirect=True)
    def test_new_approval_by_a_person_works(
        self, settings: Settings, registry: MlflowRegistry, decided: int
    ) -> None:
        approve(settings, decided, reviewer="Dr B", comment="looked again")
        found = reconcile(settings)
        assert found.decision is not None
        assert registry.get_alias("champion") == decided
        assert "review.withdrawn" not in registry.tags(decided)
        assert _rows(settings)[-1].reviewer == "Dr B"
        _require_calm(settings)

    def test_version_decided_by_an_earlier_release_is_not_approved_by_its_tags(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        """Those releases left "approved" on what they promoted, and no `review.audit`."""
        make(promoted=True)
        version = make(promoted=True)
        promote.rollback(settings, reviewer="Dr C", comment="misses nodes")
        registry.delete_tag(version, "review.audit")
        approve(settings, version, decision="approved", reviewer="Dr P", comment=f"promoted {version}")
        rows = _rows(settings)
        assert reconcile(settings).decision is None
        assert _rows(settings) == rows
        assert registry.tags(version)["review.decision"] == "withdrawn"
        _require_calm(settings)


class TestCrashes:
    @pytest.mark.parametrize("at", range(12))
    def test_promotion_cut_off_anywhere_is_finished_silently(
        self,
        settings: Settings,
        registry: MlflowRegistry,
        make: Make,
        monkeypatch: pytest.MonkeyPatch,
        at: int,
    ) -> None:
        first, second = make(promoted=True), make()
        approve(settings, second)
        with monkeypatch.context() as patch:
            Outage(patch, at)
            with pytest.raises(UnavailableError):
                reconcile(settings)
        assert len(_rows(settings)) == 2
        found = reconcile(settings)
        assert (found.decision, found.refused, found.waiting, found.remarks) == (None, (), None, ())
        assert _actions(settings) == [("promote", first, None), ("promote", second, first)]
        assert registry.aliases() == {"champion": second, "previous": first}
        assert registry.tags(second)["review.decision"] == "promoted"
        _require_calm(settings)

    @pytest.mark.parametrize("at", range(9))
    def test_rollback_cut_off_anywhere_is_finished_silently(
        self,
        settings: Settings,
        registry: MlflowRegistry,
        make: Make,
        monkeypatch: pytest.MonkeyPatch,
        at: int,
    ) -> None:
        first, second = make(promoted=True), make(promoted=True)
        with monkeypatch.context() as patch:
            Outage(patch, at)
            with pytest.raises(UnavailableError):
                promote.rollback(settings, reviewer="Dr C", comment="misses nodes")
        assert follow_audit(settings) == []
        assert registry.aliases() == {"champion": first}
        assert registry.tags(second)["review.decision"] == "withdrawn"
        assert registry.tags(second)["review.withdrawn"] == "true"
        assert [row.action for row in _rows(settings)] == ["promote", "promote", "rollback"]
        _require_calm(settings)

    @pytest.mark.parametrize("at", range(8))
    @pytest.mark.parametrize("action", ["refuse", "reject"])
    def test_refusal_and_rejection_cut_off_are_not_decided_twice(
        self,
        settings: Settings,
        registry: MlflowRegistry,
        make: Make,
        monkeypatch: pytest.MonkeyPatch,
        at: int,
        action: str,
    ) -> None:
        version = make(POOR)
        approve(settings, version, decision="approve" if action == "refuse" else "reject")
        with monkeypatch.context() as patch:
            Outage(patch, at)
            with pytest.raises(UnavailableError):
                reconcile(settings)
        reconcile(settings)
        assert _actions(settings) == [(action, version, None)]
        assert registry.get_alias("approved") is None
        assert registry.tags(version)["review.decision"] in ("refused by gates", "rejected")
        _require_calm(settings)

    def test_new_review_after_a_crash_is_decided_on_its_own(
        self, settings: Settings, registry: MlflowRegistry, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = make()
        with monkeypatch.context() as patch:
            Outage(patch, 0)
            with pytest.raises(UnavailableError):
                promote.reject(settings, version, reviewer="Dr A", comment="looks odd")
        approve(settings, version, reviewer="Dr B", comment="it is fine")
        assert reconcile(settings).decision is not None
        assert [row.action for row in _rows(settings)] == ["reject", "promote"]


class TestOthersDecideMeanwhile:
    """Another process promotes version 3, in full, in the middle of this one's work."""

    @pytest.fixture
    def between(
        self, settings: Settings, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str, bool], list[str]]:
        """`follow_audit` with the other's decision inside a call of the registry that reads or writes.

        Version 2 was promoted before, and cut off where there shall be something left to write.
        """
        make(promoted=True)
        second, third = make(), make()

        def follow(method: str, cut_off: bool) -> list[str]:
            with monkeypatch.context() as patch, suppress(UnavailableError):
                Outage(patch, 0 if cut_off else 99)
                promote.promote(settings, second, reviewer="Dr A", comment="good")
            real = getattr(MlflowRegistry, method)

            def interrupted(*arguments: Any) -> Any:
                monkeypatch.setattr(MlflowRegistry, method, real)
                found = real(*arguments) if method == "versions" else None
                promote.promote(settings, third, reviewer="Dr B", comment="better")
                return found if method == "versions" else real(*arguments)

            monkeypatch.setattr(MlflowRegistry, method, interrupted)
            return follow_audit(settings)

        return follow

    @pytest.mark.parametrize(
        ("method", "cut_off"), [("versions", False), ("versions", True), ("set_alias", True)]
    )
    def test_the_later_decision_stands_and_nobody_is_accused(
        self,
        settings: Settings,
        registry: MlflowRegistry,
        between: Callable[[str, bool], list[str]],
        method: str,
        cut_off: bool,
    ) -> None:
        assert between(method, cut_off) == []
        assert registry.aliases() == {"champion": 3, "previous": 2}
        assert _actions(settings) == [("promote", 1, None), ("promote", 2, 1), ("promote", 3, 2)]
        _require_calm(settings)


class TestHandsOnTheAliases:
    @pytest.mark.parametrize("to", ["previous", "third", "nothing"])
    def test_champion_moved_by_hand_is_put_back_and_recorded(
        self, settings: Settings, registry: MlflowRegistry, make: Make, to: str
    ) -> None:
        """Also to the version before, which is where a crash would have left it."""
        first, second, third = make(promoted=True), make(promoted=True), make()
        moved = {"previous": first, "third": third, "nothing": None}[to]
        if moved:
            registry.set_alias("champion", moved)
        else:
            registry.delete_alias("champion")
        (remark,) = follow_audit(settings)
        named = f"version {moved}" if moved else "no version"
        assert remark == f"alias champion pointed to {named} by hand; put back to version {second}"
        assert registry.get_alias("champion") == second
        restored = _rows(settings)[-1]
        assert (restored.action, restored.version, restored.previous_version, restored.follows) == (
            "restore",
            second,
            moved,
            None,
        )
        assert restored.reviewer == "reconcile"
        _require_calm(settings)

    def test_champion_before_any_promotion_is_removed_and_recorded(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        version = make()
        registry.set_alias("champion", version)
        found = reconcile(settings)
        assert found.remarks == (
            f"alias champion pointed to version {version} by hand; put back to no version",
        )
        assert found.current is None
        assert registry.aliases() == {"candidate": version}
        assert _actions(settings) == [("restore", 0, version)]
        _require_calm(settings)

    def test_previous_moved_by_hand_is_put_back_and_told(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        first, second = make(promoted=True), make(promoted=True)
        registry.set_alias("previous", second)
        assert follow_audit(settings) == [
            f"alias previous pointed to version {second} by hand; put back to version {first}"
        ]
        assert registry.get_alias("previous") == first
        assert len(_rows(settings)) == 2

    def test_hand_on_an_unfinished_promotion_is_told_too(
        self, settings: Settings, registry: MlflowRegistry, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(promoted=True)
        second, third = make(), make()
        with monkeypatch.context() as patch:
            Outage(patch, 0)
            with pytest.raises(UnavailableError):
                promote.promote(settings, second, reviewer="Dr A", comment="good")
        registry.set_alias("champion", third)
        (remark,) = follow_audit(settings)
        assert f"pointed to version {third} by hand" in remark
        assert registry.get_alias("champion") == second

    def test_deleted_champion_is_told_and_can_be_rolled_back(
        self, settings: Settings, registry: MlflowRegistry, make: Make
    ) -> None:
        first, second, third = make(promoted=True), make(promoted=True), make()
        registry.connection.client.delete_model_version(registry.name, str(second))
        approve(settings, third)
        found = reconcile(settings)
        assert found.remarks == (
            f"champion is version {second} by the audit, but the registry has no such version any more",
        )
        assert "roll back first" in found.refused[0][1]
        assert promote.rollback(settings, reviewer="Dr A", comment="it is gone") == first
        assert registry.get_alias("champion") == first
        _require_calm(settings)
