"""Review in MLflow: tags and alias of a person, reconcile decides, inference starts once."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from retroln.cli import cli
from retroln.tracking.connection import Connection
from tests.stack.driver import Platform, wait
from tests.stack.test_pipeline import SPEC, prepared

__all__ = ["prepared"]


@pytest.fixture
def promoted(prepared: Platform) -> Platform:
    """A platform with a champion."""
    platform = prepared
    if platform.workspace.registry.get_alias("champion") is None:
        platform.run("train", spec=SPEC.model_dump(mode="json"), timeout_s=400)
        review = {"approve": True, "reviewer": "Dr A", "comment": "the first"}
        assert platform.run("promote", review=review).state_name == "Completed"
    return platform


def _approve(platform: Platform, version: int, **tags: str) -> None:
    """What a reviewer does in MLflow's pages."""
    client, name = Connection.of(platform.settings).client, platform.settings.model_name
    for tag, value in tags.items():
        client.set_model_version_tag(name, str(version), f"review.{tag}", value)
    client.set_registered_model_alias(name, "approved", str(version))


def _decided(platform: Platform, version: int, word: str) -> None:
    """Reconcile has consumed the approval and written its decision on the version, to the last tag."""
    registry = platform.workspace.registry

    def look() -> bool:
        row, tags = platform.catalog.audits(platform.settings.model_name)[-1], registry.tags(version)
        written = (tags["review.decision"], tags.get("review.audit")) == (word, str(row.audit_id))
        return registry.get_alias("approved") is None and written

    wait(look, 120, f"version {version} does not become {word}")


def _by_webhook(platform: Platform) -> bool:
    return any(str(run.idempotency_key).startswith("mlflow-") for run in platform.runs_of("reconcile"))


def _said(platform: Platform, text: str) -> None:
    """One of the last reconcile runs shows this."""

    def look() -> bool:
        latest = platform.runs_of("reconcile")[:6]
        return any(text in platform.artifacts(run.id).get("reconcile", "") for run in latest)

    wait(look, 30, f"no reconcile says: {text}")


def test_approval_by_tags_and_alias_promotes_and_starts_inference_once(promoted: Platform) -> None:
    platform, registry = promoted, promoted.workspace.registry
    old = registry.get_alias("champion")
    version = platform.register_again()
    _approve(platform, version, decision="approve", reviewer="Dr B", comment="compared with the old one")
    _decided(platform, version, "promoted")
    assert (registry.get_alias("champion"), registry.get_alias("previous")) == (version, old)
    wait(lambda: _by_webhook(platform), 120, "the webhook does not start reconcile")
    row = platform.catalog.audits(platform.settings.model_name)[-1]
    assert (row.action, row.version, row.previous_version, row.reviewer) == ("promote", version, old, "Dr B")
    assert registry.tags(version)["review.audit"] == str(row.audit_id)
    key = f"{platform.settings.model_name}-audit-{row.audit_id}"
    wait(lambda: _started_by(platform, key), 60, "inference is not started")
    platform.run("reconcile")
    assert _started_by(platform, key) == 1


def _started_by(platform: Platform, key: str) -> int:
    return sum(run.idempotency_key == key for run in platform.runs_of("infer"))


def test_version_that_fails_its_gates_is_refused_with_the_reason_on_it(promoted: Platform) -> None:
    platform, registry = promoted, promoted.workspace.registry
    champion = registry.get_alias("champion")
    version = platform.register_again(fp_per_volume=2e6)
    _approve(platform, version, decision="approve", reviewer="Dr B", comment="in a hurry")
    _decided(platform, version, "refused by gates")
    assert registry.get_alias("champion") == champion
    assert "fp_per_volume" in registry.tags(version)["review.refused"]
    _said(platform, f"version {version} is refused")
    asked = platform.run("promote", version=version)
    assert asked.state_name == "Refused"
    assert "fp_per_volume" in str(asked.state.message if asked.state else "")


def test_champion_moved_by_hand_is_put_back_and_reported(promoted: Platform) -> None:
    platform, registry = promoted, promoted.workspace.registry
    champion = registry.get_alias("champion")
    other = next(v.version for v in registry.versions() if v.version != champion)
    client = Connection.of(platform.settings).client
    client.set_registered_model_alias(platform.settings.model_name, "champion", str(other))
    platform.run("reconcile")
    assert registry.get_alias("champion") == champion
    _said(platform, f"alias champion pointed to version {other}")
    assert platform.catalog.audits(platform.settings.model_name)[-1].action == "restore"


def test_rollback_restores_previous_and_a_new_approval_brings_the_withdrawn_one_back(
    promoted: Platform,
) -> None:
    platform, registry = promoted, promoted.workspace.registry
    if registry.get_alias("previous") is None:
        version = platform.register_again()
        review = {"approve": True, "reviewer": "Dr A", "comment": "as good as the other"}
        assert platform.run("promote", version=version, review=review).state_name == "Completed"
    withdrawn, previous = registry.get_alias("champion"), registry.get_alias("previous")
    assert withdrawn
    words = ["--reviewer", "Dr C", "--comment", "too many findings at L4"]
    done = CliRunner().invoke(cli, ["rollback", *words], catch_exceptions=False)
    assert done.output.strip() == f"version {previous} is champion again"
    assert (registry.get_alias("champion"), registry.get_alias("previous")) == (previous, None)
    assert registry.tags(withdrawn)["review.withdrawn"] == "true"
    platform.run("reconcile")
    row = platform.catalog.audits(platform.settings.model_name)[-1]
    assert (row.action, row.version, row.reviewer) == ("rollback", previous, "Dr C")
    key = f"{platform.settings.model_name}-audit-{row.audit_id}"
    wait(lambda: _started_by(platform, key), 60, "inference with the restored version is not started")
    _approve(platform, withdrawn, decision="approve", reviewer="Dr C", comment="the scanner was at fault")
    _decided(platform, withdrawn, "promoted")
    assert registry.get_alias("champion") == withdrawn
    assert registry.tags(withdrawn).get("review.withdrawn") != "true"


def test_alias_without_a_review_waits_and_says_what_is_missing(promoted: Platform) -> None:
    platform, registry = promoted, promoted.workspace.registry
    version = platform.register_again()
    _approve(platform, version)
    wait(lambda: "review.waiting" in registry.tags(version), 120, "nothing is said on the version")
    assert "review.reviewer" in registry.tags(version)["review.waiting"]
    _said(platform, "set review.reviewer")
    _approve(platform, version, decision="reject", reviewer="Dr B", comment="not needed")
    _decided(platform, version, "rejected")
    assert registry.tags(version)["review.decision"] == "rejected"
