"""Register, review, promote, roll back: what may become champion, who said so, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retroln.catalog.records import DatasetRecord
from retroln.errors import ConflictError, GateError, NotFoundError
from retroln.metrics import gate
from retroln.metrics.gate import GateDecision
from retroln.settings import Settings, TrainSpec
from retroln.steps.evaluate import Evaluation, figures
from retroln.steps.train import test_hash
from retroln.steps.workspace import Workspace, open_workspace
from retroln.tracking.registry import Alias, MlflowRegistry

SUMMARY_TAG = "test.summary"
TEST_HASH_TAG = "test.hash"
DATASET_TAG = "dataset.version"
SPEC_TAG = "train.spec"
WITHDRAWN_TAG = "review.withdrawn"


def find_trained(settings: Settings, spec: TrainSpec, record: DatasetRecord) -> int | None:
    """The version already trained on this dataset with this spec, if any."""
    registry = open_workspace(settings).registry
    wanted = {DATASET_TAG: record.version, SPEC_TAG: spec.model_dump_json()}
    same = [
        v for v in registry.versions() if all(v.tags.get(name) == value for name, value in wanted.items())
    ]
    return same[0].version if same else None


def register(
    settings: Settings,
    spec: TrainSpec,
    record: DatasetRecord,
    bundle_dir: Path,
    mlflow_run_id: str,
    evaluation: Evaluation,
) -> int:
    """Register a trained bundle with its test figures and name it `candidate`."""
    registry = open_workspace(settings).registry
    tags = {
        SUMMARY_TAG: json.dumps(figures(evaluation)),
        TEST_HASH_TAG: test_hash(record),
        DATASET_TAG: record.version,
        SPEC_TAG: spec.model_dump_json(),
    }
    version = registry.register(bundle_dir, mlflow_run_id, tags)
    registry.set_alias("candidate", version)
    return version


def check(settings: Settings, version: int) -> GateDecision:
    """Apply the gates to a version against the present champion; changes nothing."""
    workspace = open_workspace(settings)
    registry = workspace.registry
    tags = registry.tags(version)
    if SUMMARY_TAG not in tags:
        raise GateError(f"version {version} has no test figures", fix="register versions by `retroln train`")
    champion = registry.get_alias("champion")
    rival = registry.tags(champion) if champion not in (None, version) else None
    record = workspace.catalog.dataset(tags[DATASET_TAG])
    return gate.decide(
        json.loads(tags[SUMMARY_TAG]),
        json.loads(rival[SUMMARY_TAG]) if rival else None,
        settings.gates,
        candidate_test_hash=tags[TEST_HASH_TAG],
        champion_test_hash=rival[TEST_HASH_TAG] if rival else None,
        train_patients=workspace.catalog.train_patients(),
        test_patients=_patients(record, "test"),
    )


def _patients(record: DatasetRecord, role: str) -> frozenset[str]:
    return frozenset(member.patient_id for member in record.members if member.role == role)


def promote(settings: Settings, version: int, *, reviewer: str, comment: str) -> GateDecision:
    """Make an approved version the champion if its gates pass; the old champion becomes `previous`.

    Raises:
        GateError: a gate fails; the refusal is in the audit and on the version.
    """
    workspace = open_workspace(settings)
    registry = workspace.registry
    champion = registry.get_alias("champion")
    if champion == version:
        raise ConflictError(f"version {version} is the champion already", fix="nothing to do")
    decision = check(settings, version)
    action = "promote" if decision.passed else "refuse"
    _audit(workspace, action, version, champion, reviewer, comment, decision)
    registry.set_tag(version, "review.decision", "approved" if decision.passed else "refused by gates")
    registry.set_tag(version, "review.reviewer", reviewer)
    registry.set_tag(version, "review.comment", comment)
    _drop_aliases(registry, version, "approved")
    if not decision.passed:
        raise GateError(f"version {version} fails its gates", got=_failed(decision), fix="train a better one")
    if champion is not None:
        registry.set_alias("previous", champion)
    registry.set_alias("champion", version)
    registry.set_tag(version, WITHDRAWN_TAG, "false")
    _drop_aliases(registry, version, "candidate")
    return decision


def reject(settings: Settings, version: int, *, reviewer: str, comment: str) -> None:
    """Record that a person rejected a version; it stays in the registry without an alias.

    Raises:
        ConflictError: the version is the champion, which only a rollback takes away.
    """
    workspace = open_workspace(settings)
    registry = workspace.registry
    champion = registry.get_alias("champion")
    if champion == version:
        raise ConflictError(f"version {version} is the champion", fix="take it back with `retroln rollback`")
    _audit(workspace, "reject", version, champion, reviewer, comment, None)
    registry.set_tag(version, "review.decision", "rejected")
    registry.set_tag(version, "review.reviewer", reviewer)
    registry.set_tag(version, "review.comment", comment)
    _drop_aliases(registry, version, "approved", "candidate", "previous")


def rollback(settings: Settings, *, reviewer: str, comment: str) -> int:
    """Put `previous` back as champion in one step and mark the present champion withdrawn."""
    workspace = open_workspace(settings)
    registry = workspace.registry
    champion, previous = registry.get_alias("champion"), registry.get_alias("previous")
    if champion is None or previous is None:
        raise NotFoundError(
            "there is no previous champion",
            expected="aliases champion and previous",
            got=f"champion {champion}, previous {previous}",
            fix="promote a version with `retroln promote`",
        )
    _audit(workspace, "rollback", previous, champion, reviewer, comment, None)
    registry.set_tag(champion, WITHDRAWN_TAG, "true")
    registry.set_alias("champion", previous)
    registry.delete_alias("previous")
    return previous


def _drop_aliases(registry: MlflowRegistry, version: int, *aliases: Alias) -> None:
    """Remove those of `aliases` that point to `version`; another version keeps its own."""
    for alias in aliases:
        if registry.get_alias(alias) == version:
            registry.delete_alias(alias)


def _audit(
    workspace: Workspace,
    action: str,
    version: int,
    previous: int | None,
    reviewer: str,
    comment: str,
    decision: GateDecision | None,
) -> None:
    gate_figures: dict[str, Any] = decision.to_dict() if decision else {}
    workspace.catalog.add_audit(
        action=action,
        model_name=workspace.settings.model_name,
        version=version,
        previous_version=previous,
        reviewer=reviewer,
        comment=comment,
        gate=gate_figures,
    )


def _failed(decision: GateDecision) -> str:
    return ", ".join(f"{c.name} {c.got} (needed {c.needed})" for c in decision.checks if not c.passed)
