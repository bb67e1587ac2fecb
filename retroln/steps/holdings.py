"""Everything that holds one patient: source objects, stored objects, rows, datasets, models, caches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retroln.catalog.records import Alike, ScanRecord, WithdrawalRecord, WithdrawnItem
from retroln.errors import InputError, IntegrityError, UserError
from retroln.settings import Settings
from retroln.steps import champion
from retroln.steps.case_objects import SHORT, Ownership, cases_of, objects_below
from retroln.steps.entry import CaseEntry
from retroln.steps.identity import Policy
from retroln.steps.promote import DATASET_TAG
from retroln.steps.workspace import Workspace, open_workspace
from retroln.storage.base import ObjectInfo, ObjectStore
from retroln.tracking import traces
from retroln.tracking.traces import FoundRun, Trace

Roles = dict[str, tuple[str, ...]]
"""Role ("train", "test") of a patient in each dataset version."""


@dataclass(frozen=True)
class HoldingVersion:
    """A model version whose training or test set holds the patient.

    Attributes:
        roles: "train", "test" or both.
    """

    version: int
    roles: tuple[str, ...]
    is_champion: bool


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What holds a patient at this moment.

    Attributes:
        withdrawal: the patient's withdrawal, None before it.
        cases: the patient's case ids.
        source: keys that the source still holds, or their pseudonyms; RetroLN never writes there.
        objects: stored objects to delete, dataset manifests and training folders included.
        copies: replaced scans of other patients that show an image of this one's; to be emptied, too.
        rows: rows per table, and what a withdrawal does with them.
        datasets: dataset versions that the patient is in.
        versions: model versions trained or tested on these.
        traces: artifacts of training runs that name the patient.
        under_way: MLflow runs on these dataset versions that have not ended.
        caches: folders in this machine's work folder that belong to these dataset versions.
        remarks: what could not be looked at.
        held_copies: cases of other patients that are held since they show an image of this one's; from the
            withdrawal on they are held as `withdrawn`.
        linked: other patients of whom a CT is stored that shares an image or a person with this patient's.
    """

    patient_id: str
    withdrawal: WithdrawalRecord | None
    cases: tuple[str, ...]
    source: tuple[str, ...]
    objects: tuple[ObjectInfo, ...]
    copies: tuple[ScanRecord, ...]
    rows: tuple[WithdrawnItem, ...]
    datasets: tuple[str, ...]
    versions: tuple[HoldingVersion, ...]
    traces: tuple[Trace, ...]
    under_way: tuple[str, ...]
    caches: tuple[Path, ...]
    remarks: tuple[str, ...]
    held_copies: tuple[ScanRecord, ...]
    linked: tuple[Alike, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the patient was ever here."""
        return not (self.cases or self.source or self.withdrawal)

    def items(self) -> list[WithdrawnItem]:
        """All of it as the withdrawal's record states it."""
        return [
            *(WithdrawnItem("source", key, "named") for key in self.source),
            *(WithdrawnItem("object", info.key, "deleted") for info in self.objects),
            *self.rows,
            *(WithdrawnItem("row", f"scans {one.scan_id}", "emptied") for one in self.copies),
            *(WithdrawnItem("dataset", version, "tombstoned") for version in self.datasets),
            *(WithdrawnItem("artifact", f"{one.run_id}/{one.path}", "redacted") for one in self.traces),
            *(WithdrawnItem("version", str(v.version), "marked", "+".join(v.roles)) for v in self.versions),
            *(WithdrawnItem("cache", str(path), "deleted") for path in self.caches),
        ]


def survey(settings: Settings, patient_id: str) -> Holdings:
    """Look for everything that holds a patient; changes nothing.

    Raises:
        UnavailableError: store, catalog or MLflow does not answer, so that the list would not be whole.
    """
    workspace = open_workspace(settings)
    catalog = workspace.catalog
    scans = catalog.scans_of_patient(patient_id)
    roles: Roles = {}
    for used in catalog.datasets_of_patient(patient_id):
        roles[used.version] = (*roles.get(used.version, ()), used.role)
    policy = Policy.of(settings)
    entries, remarks = _listed(workspace, policy, patient_id)
    cases = tuple(dict.fromkeys([*cases_of(catalog, patient_id), *(one.case_id for one in entries)]))
    runs = [run for version in roles for run in traces.runs_tagged(settings, DATASET_TAG, version)]
    named, unread = _traces(settings, patient_id, runs)
    copies = tuple(catalog.replaced_copies(patient_id))
    return Holdings(
        patient_id=patient_id,
        withdrawal=catalog.withdrawal_of(patient_id),
        cases=cases,
        source=_source(workspace, policy, scans, entries),
        objects=tuple(_objects(workspace, patient_id, cases, tuple(roles))),
        copies=copies,
        rows=catalog.rows_to_withdraw(patient_id),
        datasets=tuple(roles),
        versions=_versions(workspace, roles) if roles else (),
        traces=named,
        under_way=tuple(run.run_id for run in runs if run.under_way),
        caches=tuple(_caches(settings, tuple(roles))),
        remarks=(*remarks, *unread),
        held_copies=tuple(catalog.held_copies(patient_id)),
        linked=tuple(catalog.linked(patient_id)),
    )


def _listed(workspace: Workspace, policy: Policy, patient_id: str) -> tuple[list[CaseEntry], tuple[str, ...]]:
    """The patient's cases as the source lists them, and what kept us from looking."""
    try:
        entries = policy.list(workspace.source, workspace.settings)
    except UserError as error:
        return [], (f"the source could not be listed: {error}",)
    return [one for entry in entries for one in entry.listed if one.patient_id == patient_id], ()


def _source(
    workspace: Workspace, policy: Policy, scans: Sequence[ScanRecord], entries: Sequence[CaseEntry]
) -> tuple[str, ...]:
    """Names, as the catalog has them, of what the source still holds of the patient."""
    known = [name for scan in scans for name in scan.source_uri.values()]
    known += [name for entry in entries for name in policy.locations(entry).values()]
    names = tuple(dict.fromkeys(known))
    if policy.replaced and names:
        there = _names_in(workspace.source, policy)
        return tuple(name for name in names if there is None or name in there)
    return tuple(name for name in names if _may_be_there(workspace.source, name))


def _names_in(source: ObjectStore, policy: Policy) -> set[str] | None:
    """The pseudonym of everything in the source; None if the source cannot be asked."""
    try:
        return {name for name, _ in policy.names(source)}
    except UserError:
        return None


def _may_be_there(source: ObjectStore, key: str) -> bool:
    """Whether the object, or an object in the folder, exists; True if the source cannot be asked."""
    try:
        return next(iter(source.list(key)), None) is not None
    except InputError:  # a listed name that can be no key
        return False
    except UserError:
        return True


def _objects(
    workspace: Workspace, patient_id: str, cases: Sequence[str], versions: Sequence[str]
) -> Iterator[ObjectInfo]:
    """Stored objects of the patient, found by their keys, so that what a crash left is found too."""
    prefixes = [f"{place}/{case}/" for case in cases for place in ("scans", "crops")]
    prefixes += ["predictions/"] if cases else []
    ownership = Ownership.of(workspace.catalog, patient_id, cases)
    yield from objects_below(workspace, ownership, prefixes)
    yield from objects_of_versions(workspace, versions)


def objects_of_versions(workspace: Workspace, versions: Sequence[str]) -> Iterator[ObjectInfo]:
    """Manifests of dataset versions, and what trainings on them left."""
    for version in versions:
        yield from workspace.store.list(f"datasets/{version[:SHORT]}/")
        yield from workspace.store.list(f"training/{version[:SHORT]}/")


def _traces(
    settings: Settings, patient_id: str, runs: Iterable[FoundRun]
) -> tuple[tuple[Trace, ...], tuple[str, ...]]:
    """What names the patient in these runs, and what kept us from looking."""
    named: list[Trace] = []
    unread: list[str] = []
    for run in runs:
        try:
            named += traces.traces(settings, run.run_id, patient_id)
        except IntegrityError as error:
            unread.append(str(error))
    return tuple(named), tuple(unread)


def _versions(workspace: Workspace, roles: Roles) -> tuple[HoldingVersion, ...]:
    row = champion.current(workspace.catalog.audits(workspace.settings.model_name))
    return tuple(
        HoldingVersion(
            found.version,
            roles[found.tags[DATASET_TAG]],
            row is not None and row.version == found.version,
        )
        for found in workspace.registry.versions()
        if found.tags.get(DATASET_TAG) in roles
    )


def _caches(settings: Settings, versions: Sequence[str]) -> Iterator[Path]:
    for version in versions:
        yield from sorted((settings.work_dir / "nnunet").glob(f"{version[:SHORT]}-*"))
