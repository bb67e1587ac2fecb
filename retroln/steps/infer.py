"""Infer: the champion over every prepared scan it has not seen; results in the patient's own space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy import landmarks, nodes, roi, stations
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.records import CaseHistory, CropRecord, DatasetRecord, MemberDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.errors import GateError, InputError, IntegrityError, NotFoundError
from retroln.files import sha256_file
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.nnunet.bundle import Contract
from retroln.nnunet.predict import Predictor
from retroln.report.case_page import CasePage, case_page
from retroln.report.cautions import case_cautions, short_sides, stand_in_caution
from retroln.settings import RoiSpec, Settings
from retroln.steps import champion, promote
from retroln.steps.case_objects import source_of, taking_back
from retroln.steps.cases import OnOutcome
from retroln.steps.claimed import Job, run_claimed
from retroln.steps.runs import Backlog
from retroln.steps.workspace import Workspace, open_workspace

TRAINED_ON = "trained_on"
CHAMPION_CHANGED = "champion_changed"


@dataclass(frozen=True)
class Champion:
    """The registered version in use, and the dataset that it was trained and tested on.

    Attributes:
        stand_in: what a stand-in was trained on; None for a model that is none.
    """

    name: str
    version: int
    dataset: DatasetRecord
    stand_in: str | None = field(default=None, kw_only=True)

    @property
    def cautions(self) -> list[str]:
        """What must be said beside its results."""
        return [stand_in_caution(self.stand_in)] if self.stand_in else []


@dataclass(frozen=True)
class Model(Champion):
    """A version whose bundle lies on this machine's disk."""

    bundle_dir: Path


def find_champion(settings: Settings) -> Champion:
    """Which version is the champion; nothing is downloaded.

    The audit decides which that is: an alias that somebody moved by hand is not followed.

    Raises:
        NotFoundError: nothing has been promoted yet.
    """
    workspace = open_workspace(settings)
    row = champion.current(workspace.catalog.audits(settings.model_name))
    version = row.version if row else None
    if version is None:
        raise NotFoundError(
            f"model {settings.model_name} has no champion", fix="train and promote a version first"
        )
    tags = workspace.registry.tags(version)
    dataset = workspace.catalog.dataset(tags[promote.DATASET_TAG])
    return Champion(settings.model_name, version, dataset, stand_in=promote.stand_in_of(tags))


def fetch(settings: Settings, found: Champion) -> Model:
    """Bring a version's bundle to this machine's disk (once); errors as `MlflowRegistry.fetch`."""
    bundle_dir = open_workspace(settings).registry.fetch(found.version, settings.work_dir / "models")
    return Model(found.name, found.version, found.dataset, bundle_dir, stand_in=found.stand_in)


def backlog(settings: Settings, model: Champion) -> Backlog:
    """The prepared scans that this version has not seen, and how many inference has nothing to do for.

    Those were seen by this version already, or, as `notes["trained_on"]` counts, were in its training.
    """
    catalog = open_workspace(settings).catalog
    name, version, dataset_id = model.name, model.version, model.dataset.dataset_id
    trained_on = catalog.count_trained_on(dataset_id, name, version)
    return Backlog(
        left=tuple(catalog.scans_to_infer(name, version, exclude_training_scans_of=dataset_id)),
        skipped=catalog.count_inferred(name, version) + trained_on,
        notes={TRAINED_ON: trained_on},
    )


def _trained_on(model: Champion) -> list[MemberDraft]:
    return [member for member in model.dataset.members if member.role == "train"]


def infer(
    settings: Settings,
    model: Model,
    scan_ids: Sequence[int],
    *,
    run_id: int,
    owner: str,
    on_outcome: OnOutcome | None = None,
) -> list[CaseOutcome]:
    """Run the model over the given scans under claims of `owner`, one after the other, network kept warm.

    See `claimed.run_claimed`.
    """
    work = partial(infer_case, settings, model, run_id, owner=owner)
    job = Job(settings, run_id, owner, work, partial(_waits, model))
    return run_claimed(job, scan_ids, on_outcome=on_outcome)


def leave(settings: Settings, model: Champion, scan_ids: Sequence[int], *, run_id: int) -> list[CaseOutcome]:
    """Note that scans were left because `model` became champion after their run began with another.

    The next run takes them up with it; results of a version that is no longer champion are not made.
    """
    catalog = open_workspace(settings).catalog
    detail = f"version {model.version} became champion during this run; the next run takes the scan up"
    left = [
        CaseOutcome(case_id, Outcome.SKIPPED, CHAMPION_CHANGED, detail)
        for case_id in catalog.case_ids(scan_ids).values()
    ]
    catalog.note_outcome(run_id, *left, replacing=False)
    return left


def _waits(model: Champion, scan: ScanRecord) -> bool:
    seen = (scan.predicted_model, scan.predicted_version) == (model.name, model.version)
    return scan.state is ScanState.PREPARED and not seen


def infer_case(
    settings: Settings, model: Model, run_id: int, scan: ScanRecord, *, owner: str | None = None
) -> CaseOutcome:
    """Predict, paste back, verify, measure, write the page and record one scan; quarantine a bad crop.

    Args:
        owner: who must have the scan in hand when it is recorded; None asks for no claim.

    Raises:
        LeaseError: another worker has the scan by now; nothing was recorded.
        WithdrawnError: the patient withdrew meanwhile; nothing was recorded, and nothing of it is left.
    """
    workspace = open_workspace(settings).of_worker(owner)
    base = f"predictions/{model.name}-v{model.version}/{scan.case_id}/{source_of(scan)}/"
    with taking_back(workspace, scan, base):
        try:
            return _infer_case(workspace, model, run_id, scan, base)
        except InputError as error:
            workspace.catalog.quarantine(scan.scan_id, error.reason, str(error), run_id)
            return CaseOutcome(scan.case_id, Outcome.QUARANTINED, error.reason, str(error))


def _infer_case(workspace: Workspace, model: Model, run_id: int, scan: ScanRecord, base: str) -> CaseOutcome:
    crop = workspace.catalog.crop_of(scan.scan_id)
    with workspace.scratch() as folder:
        workspace.store.get_file(crop.ct_key, folder / "ct.nii.gz")
        ct = nifti.read(folder / "ct.nii.gz")
        predictor = _predictor(workspace.settings, model)
        labels = _predict(predictor, ct, crop)
        measured = nodes.measure(labels, levels=_levels(workspace, scan, folder), instances=True)
        sha256 = _store_labels(workspace, labels, crop, folder, base + "labels.nii.gz")
        rows = [node.to_dict() for node in measured]
        workspace.store.put_bytes(nodes.to_csv(measured).encode(), base + "nodes.csv")
        page = _page(workspace, model, predictor, scan, crop, ct, labels, rows)
        workspace.store.put_bytes(page.encode(), base + "page.html")
    workspace.catalog.record_prediction(
        scan.scan_id,
        model_name=model.name,
        version=model.version,
        label_key=base + "labels.nii.gz",
        page_key=base + "page.html",
        sha256=sha256,
        nodes=rows,
        run_id=run_id,
    )
    return CaseOutcome(scan.case_id, Outcome.DONE)


def _predictor(settings: Settings, model: Model) -> Predictor:
    from retroln.engine.warm import predictor_for

    return predictor_for(model.bundle_dir, "auto", settings.arithmetic)


def _predict(predictor: Predictor, ct: Volume, crop: CropRecord) -> Volume:
    if predictor.contract.roi != crop.spec:
        raise GateError(
            "the crop was cut by another region than the model was trained on",
            expected=str(predictor.contract.roi),
            got=str(crop.spec),
            fix="set RETROLN_ROI__... to the model's region, then `retroln prepare --again`",
        )
    predicted = predictor.predict(ct)
    return predicted.with_array(
        nodes.findings(predicted, predictor.contract.min_finding_mm3).astype(np.uint16)
    )


def _levels(workspace: Workspace, scan: ScanRecord, folder: Path) -> stations.Levels | None:
    if scan.vertebrae_key is None or _names_are_set_aside(workspace, scan):
        return None
    workspace.store.get_file(scan.vertebrae_key, folder / "vertebrae.nii.gz")
    return stations.Levels.of(nifti.read_labels(folder / "vertebrae.nii.gz"))


def _names_are_set_aside(workspace: Workspace, scan: ScanRecord) -> bool:
    """Whether a person placed L2 where the labels have another level: no node is told a level by them."""
    findings = workspace.catalog.landmarks_of(scan.scan_id).findings
    return any(one.startswith(f"{landmarks.NAMES_SET_ASIDE}:") for one in findings)


def _store_labels(workspace: Workspace, labels: Volume, crop: CropRecord, folder: Path, key: str) -> str:
    """Write the label map on the delivered grid, then read it back and compare before it counts."""
    region = roi.from_json(crop.roi)
    path = folder / "labels.nii.gz"
    nifti.write(path, roi.paste(labels.array, region), region.source)
    returned = nifti.read_labels(path)
    if not pasted_exactly(returned, labels.array, region):
        raise IntegrityError("the label map did not survive the way back to the delivered grid", file=key)
    workspace.store.put_file(path, key)
    return sha256_file(path)


def pasted_exactly(returned: Volume, crop: NDArray[Any], region: roi.Roi) -> bool:
    """True if `returned` holds `crop` in the region's box, nothing elsewhere, on the delivered grid."""
    same_grid = _same_affine(returned.source, region.source) and returned.grid.shape == region.grid.shape
    inside = returned.array[region.box.slices]
    return bool(
        same_grid
        and np.array_equal(inside, crop)
        and np.count_nonzero(returned.array) == np.count_nonzero(crop)
    )


def _same_affine(first: Grid, second: Grid) -> bool:
    return first.shape == second.shape and first.distance_mm(second) < 1e-3


def _page(
    workspace: Workspace,
    model: Model,
    predictor: Predictor,
    scan: ScanRecord,
    crop: CropRecord,
    ct: Volume,
    labels: Volume,
    rows: list[dict[str, Any]],
) -> str:
    region, contract = roi.from_json(crop.roi), predictor.contract
    provenance = {
        "Model": f"{model.name} version {model.version}",
        "Training data": f"dataset {model.dataset.version[:16]}",
        "Source sha256": str(scan.source_sha256),
        "Revision of the case": str(scan.revision),
        "Delivered orientation": str(scan.orientation),
        "Region": _size_text(region.spec),
        "HU window": f"{contract.hu.low:g} to {contract.hu.high:g}",
        "Operating point": f"p >= {contract.min_probability:g}, {contract.min_finding_mm3:g} mm³ or more",
        "Arithmetic": predictor.arithmetic,
        "Software": ", ".join(f"{name} {number}" for name, number in contract.versions.items()),
    }
    history = workspace.catalog.case_history(scan.case_id)
    landmarks = history.landmarks
    return case_page(
        CasePage(
            case_id=scan.case_id,
            patient_id=scan.patient_id,
            ct=ct,
            labels=labels,
            nodes=rows,
            provenance=provenance,
            rung=region.rung,
            short_sides=short_sides(landmarks.truncated if landmarks else (), region.clamped_sides),
            cautions=_cautions(model, contract, history),
            accounting=_accounting(workspace, history),
            events=[(f"{e.at:%Y-%m-%d %H:%M} UTC", e.to_state, e.reason or "") for e in history.events],
            model=f"{model.name} v{model.version}",
        )
    )


def _cautions(model: Champion, contract: Contract, history: CaseHistory) -> list[str]:
    """What a reader must know before the nodes."""
    found = [stand_in_caution(contract.stand_in)] if contract.stand_in else []
    found += case_cautions(history)
    patients = {member.patient_id for member in _trained_on(model)}
    if history.current.patient_id in patients:
        found.append("The model was trained on another scan of this patient, which flatters its findings.")
    return found


def _accounting(workspace: Workspace, history: CaseHistory) -> list[tuple[str, dict[str, int]]]:
    """The runs that brought the case here, each with its sum; the run that writes the page still counts."""
    ids = dict.fromkeys(event.run_id for event in history.events if event.run_id is not None)
    runs = [workspace.catalog.run(run_id) for run_id in ids]
    return [(f"{r.flow}, run {r.run_id}", r.accounting.to_dict()) for r in runs if r.accounting]


def _size_text(spec: RoiSpec) -> str:
    """The region's size in words."""
    return f"{spec.behind_mm:g} mm behind to {spec.ahead_mm:g} mm ahead of L2, {spec.lateral_mm:g} mm wide"
