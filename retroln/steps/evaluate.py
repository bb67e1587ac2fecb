"""Evaluate: score a model on the locked test set, on the whole scan: nodes outside the region count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy import baseline, nodes, roi
from retroln.catalog.records import DatasetRecord
from retroln.imaging import nifti
from retroln.imaging.volume import Volume
from retroln.metrics.evaluate import CaseScore, NodeScore, Summary, score_case, summarise
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace

Detector = Callable[[Volume], NDArray[Any]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one detector on the locked test set."""

    scores: tuple[CaseScore, ...]
    summary: Summary


def evaluate_bundle(settings: Settings, bundle_dir: Path, record: DatasetRecord) -> Evaluation:
    """Score a trained bundle on this machine's GPU, or its CPU; it sees the CT crop alone."""
    from retroln.engine.warm import predictor_for

    predictor = predictor_for(bundle_dir, "auto", settings.arithmetic)
    smallest = predictor.contract.min_finding_mm3
    return _evaluate(settings, record, lambda crop: nodes.findings(predictor.predict(crop), smallest) > 0)


def evaluate_baseline(settings: Settings, record: DatasetRecord) -> Evaluation:
    """Score the plain threshold-and-size detector on the same cases."""
    return _evaluate(settings, record, baseline.detect)


def _evaluate(settings: Settings, record: DatasetRecord, detect: Detector) -> Evaluation:
    test = [member for member in record.members if member.role == "test"]
    scores = tuple(_score(settings, m.scan_id, m.case_id, m.patient_id, detect) for m in test)
    return Evaluation(scores, summarise(scores))


def _score(settings: Settings, scan_id: int, case_id: str, patient_id: str, detect: Detector) -> CaseScore:
    workspace = open_workspace(settings)
    scan, crop = workspace.catalog.scan(scan_id), workspace.catalog.crop_of(scan_id)
    with workspace.scratch() as folder:
        workspace.store.get_file(crop.ct_key, folder / "ct.nii.gz")
        workspace.store.get_file(str(scan.mask_key), folder / "mask.nii.gz")
        ct, mask = nifti.read(folder / "ct.nii.gz"), nifti.read_labels(folder / "mask.nii.gz")
    region = roi.from_json(crop.roi)
    predicted = np.zeros(mask.grid.shape, np.uint8)
    predicted[region.box.slices] = detect(ct) > 0
    truth = nodes.instances(mask.array)
    axes = {node.label: node.short_axis_mm for node in nodes.measure(mask.with_array(truth), instances=True)}
    return score_case(case_id, patient_id, truth, nodes.instances(predicted), mask.grid.spacing_mm, axes)


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Every case's score and the summary, as plain values."""
    return {"cases": [score.to_dict() for score in evaluation.scores], "summary": figures(evaluation)}


def from_json(content: dict[str, Any]) -> Evaluation:
    """The evaluation that `to_json` wrote; the summary follows from the cases."""
    scores = tuple(_case_score(case) for case in content["cases"])
    return Evaluation(scores, summarise(scores))


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """The summary as plain values for MLflow, tags and tables."""
    return evaluation.summary.to_dict()


def _case_score(case: dict[str, Any]) -> CaseScore:
    plain = {name: value for name, value in case.items() if name not in ("n_nodes", "nodes")}
    return CaseScore(**plain, nodes=tuple(NodeScore(**node) for node in case["nodes"]))
