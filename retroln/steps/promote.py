"""Register, review, promote, roll back: what may become champion, who said so, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroln.catalog.records import DatasetRecord
from retroln.errors import ConflictError, GateError, NotFoundError
from retroln.metrics import gate
from retroln.metrics.gate import GateCheck, GateDecision
from retroln.settings import Settings, TrainSpec
from retroln.steps import champion
from retroln.steps.evaluate import Evaluation, figures
from retroln.steps.review import Words
from retroln.steps.train import test_hash
from retroln.steps.workspace import Workspace, open_workspace

SUMMARY_TAG = "test.summary"
TEST_HASH_TAG = "test.hash"
DATASET_TAG = "dataset.version"
SPEC_TAG = "train.spec"


@dataclass(frozen=True)
class Decision:
    """A promotion that was written down and carried out.

    Attributes:
        audit_id: its row in the audit.
        action: "promote".
        version: the champion now.
        previous: the champion before, None for the first.
        gate: the gates that it passed.
    """

    audit_id: int
    action: str
    version: int
    previous: int | None
    gate: GateDecision


def find_trained(settings: Settings, spec: TrainSpec, record: DatasetRecord) -> int | None:
    """The version already trained on this dataset with this spec, if any."""
    registry = open_workspace(settings).registry
    same = [
        v.version
        for v in registry.versions()
        if v.tags.get(DATASET_TAG) == record.version and _is_of(v.tags, spec)
    ]
    return same[0] if same else None


def stand_in_of(tags: Mapping[str, str]) -> str | None:
    """What a version that is a stand-in was trained on, by its tags; None for one that is none."""
    try:
        spec = json.loads(tags.get(SPEC_TAG, ""))
    except ValueError:
        return None
    return spec.get("stand_in") if isinstance(spec, dict) else None


def _is_of(tags: Mapping[str, str], spec: TrainSpec) -> bool:
    try:
        return bool(json.loads(tags.get(SPEC_TAG, "")) == spec.recorded())
    except ValueError:
        return False


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
        SPEC_TAG: json.dumps(spec.recorded()),
    }
    version = registry.register(bundle_dir, mlflow_run_id, tags)
    registry.set_alias("candidate", version)
    return version


def check(settings: Settings, version: int) -> GateDecision:
    """Apply the gates to a version against the present champion; changes nothing.

    Raises:
        NotFoundError: no such version.
    """
    workspace = open_workspace(settings)
    last = champion.current(workspace.catalog.audits(settings.model_name))
    return _judge(workspace, version, last.version if last else None)


def caution(settings: Settings, version: int) -> str | None:
    """What to know of a version's data before deciding, in words; None for nothing. Decides nothing.

    Raises:
        NotFoundError: no such version.
    """
    workspace = open_workspace(settings)
    number = workspace.catalog.withdrawn_from(workspace.registry.tags(version).get(DATASET_TAG, ""))
    return f"version {version} knows {number} patients who took back consent since" if number else None


def promote(settings: Settings, version: int, *, reviewer: str, comment: str) -> Decision:
    """Make a version the champion if its gates pass; the old champion becomes `previous`.

    Whatever stops this after the audit row is written, the next `follow_audit` finishes.

    Raises:
        UserError: reviewer or comment is empty.
        GateError: a gate fails; the refusal is in the audit and on the version.
        ConflictError: the version is the champion already, or another decision came first.
        NotFoundError: no such version.
    """
    words = Words.of(reviewer, comment)
    workspace = open_workspace(settings)
    champion.carry_out(workspace)
    last = champion.current(workspace.catalog.audits(settings.model_name))
    previous = last.version if last else None
    if previous == version:
        raise ConflictError(f"version {version} is the champion already", fix="nothing to do")
    gates = _judge(workspace, version, previous)
    action = "promote" if gates.passed else "refuse"
    follows = last.audit_id if last else 0
    audit_id = _decide(workspace, action, version, previous, words, gates, follows)
    if not gates.passed:
        raise GateError(
            f"version {version} fails its gates", got="; ".join(gates.failures), fix="train a better one"
        )
    return Decision(audit_id, action, version, previous, gates)


def reject(settings: Settings, version: int, *, reviewer: str, comment: str) -> None:
    """Record that a person rejected a version; it stays in the registry without an alias.

    Raises:
        UserError: reviewer or comment is empty.
        ConflictError: the version is the champion, which only a rollback takes away.
        NotFoundError: no such version.
    """
    words = Words.of(reviewer, comment)
    workspace = open_workspace(settings)
    champion.carry_out(workspace)
    workspace.registry.version(version)
    last = champion.current(workspace.catalog.audits(settings.model_name))
    if last and last.version == version:
        raise ConflictError(f"version {version} is the champion", fix="take it back with `retroln rollback`")
    _decide(workspace, "reject", version, last.version if last else None, words)


def rollback(settings: Settings, *, reviewer: str, comment: str) -> int:
    """Put the version before back as champion in one step and mark the present one withdrawn.

    Raises:
        UserError: reviewer or comment is empty.
        NotFoundError: there is no step back.
        ConflictError: another decision came first.
    """
    words = Words.of(reviewer, comment)
    workspace = open_workspace(settings)
    champion.carry_out(workspace)
    rows = workspace.catalog.audits(settings.model_name)
    last, back = champion.current(rows), champion.way_back(rows)
    if last is None or back is None:
        raise NotFoundError(
            "there is no previous champion",
            expected="a promotion that replaced a champion",
            got=f"last moved by audit row {last.audit_id}, {last.action}" if last else "no promotion",
            fix="promote a version with `retroln promote`",
        )
    workspace.registry.version(back)
    _decide(workspace, "rollback", back, last.version, words, follows=last.audit_id)
    return back


def _decide(
    workspace: Workspace,
    action: str,
    version: int,
    previous: int | None,
    words: Words,
    gates: GateDecision | None = None,
    follows: int | None = None,
) -> int:
    """The audit row first, then the registry after it; returns the row's id."""
    audit_id = workspace.catalog.add_audit(
        action=action,
        model_name=workspace.settings.model_name,
        version=version,
        previous_version=previous,
        reviewer=words.reviewer,
        comment=words.comment,
        gate=gates.to_dict() if gates else {},
        follows=follows,
    )
    champion.carry_out(workspace, decided=previous if action == "rollback" else version)
    return audit_id


def _judge(workspace: Workspace, version: int, rival: int | None) -> GateDecision:
    """The gates; what makes it impossible to apply them is a gate that fails."""
    tags = workspace.registry.tags(version)
    try:
        candidate = _figures(tags, f"version {version}")
        other = None if rival in (None, version) else _tags_of_champion(workspace, rival)
        beaten = _figures(other, f"champion {rival}") if other is not None else None
        record = _dataset(workspace, tags)
    except GateError as error:
        return GateDecision((GateCheck("test_figures", False, error.what, "figures of `retroln train`"),))
    return gate.decide(
        candidate,
        beaten,
        workspace.settings.gates,
        candidate_test_hash=tags.get(TEST_HASH_TAG, ""),
        champion_test_hash=other.get(TEST_HASH_TAG) if other is not None else None,
        train_patients=workspace.catalog.train_patients(),
        test_patients=frozenset(m.patient_id for m in record.members if m.role == "test"),
    )


def _figures(tags: Mapping[str, str], who: str) -> dict[str, Any]:
    try:
        found = json.loads(tags.get(SUMMARY_TAG, ""))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise GateError(f"{who} has no test figures")
    return found


def _tags_of_champion(workspace: Workspace, version: int | None) -> dict[str, str]:
    try:
        return workspace.registry.tags(version or 0)
    except NotFoundError as error:
        raise GateError(f"champion {version} is gone from the registry; roll back first") from error


def _dataset(workspace: Workspace, tags: Mapping[str, str]) -> DatasetRecord:
    try:
        return workspace.catalog.dataset(tags.get(DATASET_TAG, ""))
    except NotFoundError as error:
        raise GateError("its dataset is not in this catalog") from error
