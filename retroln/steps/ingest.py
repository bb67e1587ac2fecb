"""Ingest: validate, hash, canonicalise and record each case; the source is never touched.

What is stored is RAS+ NIfTI with a fresh header (no extension, description or file name of the
source), under a key that holds the hash of the source bytes, so that ingesting twice writes the same. Of a
DICOM series its headers without the patient are stored beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retroln.anatomy.vertebrae import Vertebrae
from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.likeness import AlikeError
from retroln.catalog.records import Mark, ScanDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError, InputError, NotFoundError, UserError, WithdrawnError
from retroln.files import sha256_json
from retroln.imaging import nifti
from retroln.imaging.dicom.study import is_candidate
from retroln.imaging.volume import Volume
from retroln.settings import Settings
from retroln.steps.arrivals import (
    Arrival,
    Known,
    asked_series,
    is_wanted_again,
    may_do_now,
    outcome_of_unchanged,
    refused,
    unchanged,
    withdrawn_error,
)
from retroln.steps.case_objects import SHORT, facts_key, remove
from retroln.steps.cases import OnOutcome, tell
from retroln.steps.claimed import DONE_ELSEWHERE, Worker, this_process
from retroln.steps.cohort import Parts
from retroln.steps.delivered import Delivered, Image, neutral_name
from retroln.steps.entry import UNKNOWN, CaseEntry
from retroln.steps.identity import NO_KEY, Policy
from retroln.steps.likeness import alike_error, marks_of, retiring
from retroln.steps.workspace import Workspace, open_workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intake(Worker[CaseEntry]):
    """Takes in cases of the source, each under a claim on its case id."""

    def _claim(self, item: CaseEntry) -> bool:
        return self.catalog.claim_case(item.case_id, self.owner, self.settings.lease_s)

    def _renew(self, item: CaseEntry) -> bool:
        return self.catalog.renew_case(item.case_id, self.owner, self.settings.lease_s)

    def _release(self, item: CaseEntry) -> None:
        self.catalog.release_case(item.case_id, self.owner)

    def _work(self, item: CaseEntry) -> CaseOutcome:
        return self.patiently(lambda: ingest_case(self.settings, self.run_id, item))


def ingest(
    settings: Settings,
    entries: Sequence[CaseEntry] | None = None,
    *,
    run_id: int,
    owner: str | None = None,
    on_outcome: OnOutcome | None = None,
) -> list[CaseOutcome]:
    """Ingest every case of the source (or just `entries`), one outcome each, also noted in the run's ledger.

    All cases are compared with the catalog at once; processes are started for what is not unchanged.

    Args:
        settings: the platform.
        entries: cases of the source.
        run_id: the run that this is done for. Called again for the same run, it goes on.
        owner: under which name cases are claimed; None for this process.
        on_outcome: is told each outcome.

    Raises:
        UnavailableError: the catalog, or the source's listing, stayed away for longer than patience lasts.
    """
    if entries is None:
        entries = list_entries(settings)
    intake = Intake(settings, run_id, owner or this_process())
    workspace, policy = open_workspace(settings), Policy.of(settings)
    if older := intake.patiently(workspace.catalog.count_unmarked):
        log.warning("%d scans of an older RetroLN: `retroln catalog identify` lets them be told again", older)
    known = intake.patiently(lambda: unchanged(workspace, policy, run_id, entries))
    intake.note(*known.values())
    for outcome in known.values():
        tell(outcome, on_outcome)
    others = [entry for entry in entries if entry.case_id not in known]
    return [*known.values(), *intake.run(others, processes=settings.processes, on_outcome=on_outcome)]


def list_entries(settings: Settings) -> tuple[CaseEntry, ...]:
    """Every case that the source lists, under its name in here (see `steps.identity`).

    Warns of DICOM that will be held for want of a key, before the first case is read.
    """
    policy = Policy.of(settings)
    entries = policy.list(open_workspace(settings).source, settings)
    waiting = 0 if policy.known else sum(entry.is_named_dicom for entry in entries)
    if waiting:
        log.warning(
            "%d of %d cases are DICOM and are held as %s: RETROLN_PSEUDONYM_KEY is not set",
            waiting,
            len(entries),
            NO_KEY,
        )
    return entries


def ingest_case(settings: Settings, run_id: int, entry: CaseEntry) -> CaseOutcome:
    """Take one case in: done, skipped when its bytes are known, or quarantined with the reason.

    Where the source's names are replaced, no error that leaves here names them.
    """
    policy = Policy.of(settings)
    try:
        return _ingest(open_workspace(settings), policy, run_id, entry)
    except UserError as error:
        if not policy.replaced:
            raise
        raise policy.conceal(error, entry) from None
    except Exception as error:
        if not policy.replaced:
            raise
        return CaseOutcome(entry.case_id, Outcome.FAILED, type(error).__name__, policy.withheld(error))


def _ingest(workspace: Workspace, policy: Policy, run_id: int, entry: CaseEntry) -> CaseOutcome:
    arrival = Arrival.of(entry, Known.of_case(workspace.catalog, entry.case_id), workspace.source, policy)
    current = arrival.current
    if current and (known := arrival.known_outcome(policy, workspace.settings)):
        return _own(workspace, current, run_id, known)
    seen = Seen(entry)
    try:
        return _take_in(workspace, policy, arrival, seen, run_id)
    except InputError as error:
        held = _held(workspace, policy, arrival, seen, error)
        outcome = CaseOutcome(entry.case_id, Outcome.QUARANTINED, held.reason, held.detail)
        return _add(workspace, policy, seen.entry, held, current, run_id) or outcome


@dataclass
class Seen:
    """What is known of a delivery so far; if it is held, this goes into the record.

    Attributes:
        entry: with the patient's id, once the headers have said it.
    """

    entry: CaseEntry
    content: Content | None = None
    marks: frozenset[Mark] = frozenset()


def _take_in(workspace: Workspace, policy: Policy, arrival: Arrival, seen: Seen, run_id: int) -> CaseOutcome:
    """Read the delivery and record it, unless its bytes are known. Raises `InputError` where it is held."""
    if arrival.problem:
        raise arrival.problem
    current = arrival.current
    _require_same_patient(seen.entry, current)
    if seen.entry.is_named_dicom:
        policy.for_dicom(seen.entry.ct)
    with workspace.scratch() as folder:
        seen.content = _fetch(workspace, seen.entry, arrival.parts, folder)
        if current and (known := _known_bytes(workspace, policy, arrival, current, seen.content, run_id)):
            return known
        delivered = Delivered.open(seen.entry, folder, arrival.parts["ct"], policy)
        seen.entry = replace(seen.entry, patient_id=delivered.patient_id)
        _require_same_patient(seen.entry, current)
        image = delivered.read_image(workspace.settings)
        seen.marks = marks_of(image.ct, image.record, delivered.persons)
        if found := workspace.catalog.alike(seen.marks, delivered.patient_id):
            raise alike_error(seen.entry, found)
        _begin(workspace, seen.entry, seen.content.sha256)
        draft = _canonicalise(workspace, delivered, image, seen.content)
    draft = replace(draft, source_fingerprint=arrival.fingerprint, marks=seen.marks)
    try:
        outcome = CaseOutcome(draft.case_id, Outcome.DONE, detail=draft.detail)
        return _add(workspace, policy, seen.entry, draft, current, run_id) or outcome
    except AlikeError as error:  # the other was recorded while this one was stored
        _remove_stored(workspace, draft)
        raise alike_error(seen.entry, error.found) from error


def _known_bytes(
    workspace: Workspace,
    policy: Policy,
    arrival: Arrival,
    current: ScanRecord,
    content: Content,
    run_id: int,
) -> CaseOutcome | None:
    """The outcome of bytes that are a scan of the case already; None if they are new, or to be read again.

    The same bytes are the same scan: one that others took the place of is brought back.
    """
    catalog = workspace.catalog
    same = (content.sha256, content.sha256_with_extras)
    if current.source_sha256 in same and not (is_wanted_again(current, policy) or may_do_now(current)):
        catalog.touch_fingerprint(current.scan_id, arrival.fingerprint)
        return _own(workspace, current, run_id, outcome_of_unchanged(current))
    known = catalog.superseded_by_bytes(current.case_id, *same)
    if known is None:
        return None
    try:
        catalog.bring_back(known.scan_id, arrival.fingerprint, run_id, follows=current.scan_id)
    except AlikeError as error:
        raise alike_error(arrival.entry, error.found) from error
    except ConflictError as error:
        return _done_meanwhile(workspace, policy, arrival.entry, current.scan_id, run_id, error)
    return CaseOutcome(current.case_id, Outcome.DONE)


def _own(workspace: Workspace, scan: ScanRecord, run_id: int, outcome: CaseOutcome) -> CaseOutcome:
    """What this run itself made of the scan, if it recorded it before and did not come to say so."""
    own = workspace.catalog.outcome_by(scan.scan_id, run_id) if outcome.outcome is Outcome.SKIPPED else None
    return own or outcome


def _add(
    workspace: Workspace,
    policy: Policy,
    entry: CaseEntry,
    draft: ScanDraft,
    current: ScanRecord | None,
    run_id: int,
) -> CaseOutcome | None:
    """Record the draft, and return None.

    What cannot be used takes the place of no scan whose CT is stored: it is held beside it.
    If somebody else recorded the case meanwhile, or its patient withdrew, nothing is recorded: what became of
    it is returned. Of a patient who withdrew nothing stays in the store.
    """
    catalog, follows = workspace.catalog, current.scan_id if current else 0
    try:
        if current and current.ct_key and draft.ct_key is None:
            catalog.hold_delivery(draft, run_id, follows=follows)
        else:
            catalog.add_scan(draft, run_id, follows=follows)
    except WithdrawnError:
        _take_back(workspace, draft)
        return refused(policy, entry, withdrawn_error(entry, draft.patient_id))
    except ConflictError as error:
        return _done_meanwhile(workspace, policy, entry, follows, run_id, error)
    return None


def _done_meanwhile(
    workspace: Workspace,
    policy: Policy,
    entry: CaseEntry,
    follows: int,
    run_id: int,
    error: ConflictError,
) -> CaseOutcome:
    """What became of a case of which `follows` is the current scan no longer; raises `error` if it is."""
    present = workspace.catalog.current_scan(entry.case_id)
    if present and present.state is ScanState.WITHDRAWN:
        return refused(policy, entry, withdrawn_error(entry, present.patient_id))
    if present is None or present.scan_id == follows:
        raise error
    detail = f"it was done meanwhile and is {present.state} now"
    skipped = CaseOutcome(entry.case_id, Outcome.SKIPPED, DONE_ELSEWHERE, detail)
    return _own(workspace, present, run_id, skipped)


def _begin(workspace: Workspace, entry: CaseEntry, sha256: str) -> None:
    """Let the catalog know whose objects will be stored, so that those of a worker that dies are found."""
    try:
        workspace.catalog.begin_intake(entry.case_id, entry.patient_id, sha256)
    except WithdrawnError as error:
        raise withdrawn_error(entry, entry.patient_id) from error


def _take_back(workspace: Workspace, draft: ScanDraft) -> None:
    """Remove what was just stored of a patient who withdrew meanwhile; what stays, the sweep removes."""
    if draft.source_sha256:
        base = _base(draft.case_id, draft.source_sha256)
        remove(workspace, draft.patient_id, workspace.store.list(base))


def _remove_stored(workspace: Workspace, draft: ScanDraft) -> None:
    """Remove what was just stored of a case that is not recorded."""
    for info in list(workspace.store.list(_base(draft.case_id, str(draft.source_sha256)))):
        workspace.store.delete(info.key)


def _base(case_id: str, sha256: str) -> str:
    """Where a revision is stored."""
    return f"scans/{case_id}/{sha256[:SHORT]}/"


def _require_same_patient(entry: CaseEntry, current: ScanRecord | None) -> None:
    if entry.patient_id and current and current.ct_key and current.patient_id != entry.patient_id:
        raise InputError(
            f"case {entry.case_id} belonged to another patient before",
            reason="patient_changed",
            expected=current.patient_id,
            got=entry.patient_id,
            fix="give the new scan a case id of its own; if the earlier one was the wrong patient's,"
            f" {retiring(entry.case_id, current.patient_id)}",
        )


@dataclass(frozen=True)
class Content:
    """What was delivered of a case, by hashes over its bytes and what they are said to be.

    Attributes:
        sha256: of all of it, but for what lies harmlessly in a folder of slices.
        imaging_sha256: of CT and vertebrae.
        sha256_with_extras: as older records have it.
    """

    sha256: str
    imaging_sha256: str
    sha256_with_extras: str


def _fetch(workspace: Workspace, entry: CaseEntry, parts: Parts, folder: Path) -> Content:
    """Download every part and hash it."""
    hashes: dict[str, list[str | list[str]]] = {}
    extras: list[str] = []
    for name, infos in parts.items():
        target = folder / name
        target.mkdir()
        digests: list[str | list[str]] = []
        for number, info in enumerate(infos, start=1):
            file_name = info.key.rsplit("/", 1)[-1]
            copy = file_name if name == "vertebrae" else neutral_name(number, info.key)
            try:
                digest = workspace.source.get_file(info.key, target / copy)
            except NotFoundError as error:
                raise _vanished(info.key) from error
            # in a folder of levels a file's name says which level it is
            in_folder = name == "vertebrae" and info.key != entry.vertebrae
            digests.append([file_name, digest] if in_folder else digest)
            if name == "ct" and len(infos) > 1 and _is_extra(target / copy):
                extras.append(digest)
        # slices may be renamed: their headers say where they belong
        hashes[name] = digests if name == "vertebrae" else sorted(digests, key=str)
    slices = sorted(set(hashes["ct"]) - set(extras), key=str)
    content = hashes | {"ct": slices or hashes["ct"]}
    imaging = {name: digests for name, digests in content.items() if name != "mask"}
    return Content(*(_hash(entry, parts) for parts in (content, imaging, hashes)))


def _is_extra(path: Path) -> bool:
    try:
        return not is_candidate(path)
    except InputError:  # whoever opens the study says so
        return False


def _hash(entry: CaseEntry, hashes: Mapping[str, Any]) -> str:
    return sha256_json([entry.patient_id, entry.label_ids, hashes, *asked_series(entry)])


def _vanished(key: str) -> InputError:
    return InputError(
        "vanished while reading, or a link that leads nowhere",
        reason="missing_object",
        file=key,
        expected="an object that stays",
        got="nothing",
        fix="upload it again",
    )


def _canonicalise(workspace: Workspace, delivered: Delivered, image: Image, content: Content) -> ScanDraft:
    entry, folder, ct = delivered.entry, delivered.folder, image.ct
    base = _base(entry.case_id, content.sha256)
    keys: dict[str, str] = {}
    if entry.vertebrae:
        spine = delivered.read_vertebrae(ct.grid)
        labels = Volume(spine.to_label_map(), ct.grid, ct.grid)
        keys["vertebrae"] = _store(workspace, labels, folder, base + "vertebrae.nii.gz")
        workspace.store.put_bytes(spine_facts(spine), facts_key(keys["vertebrae"]))
    if entry.mask:
        mask = delivered.read_mask(ct.grid, image.series, workspace.settings.mask_names)
        keys["mask"] = _store(workspace, mask, folder, base + "mask.nii.gz")
    if image.record:
        keys["series"] = base + "series.json"
        workspace.store.put_bytes(_as_json(image.record), keys["series"])
    keys["ct"] = _store(workspace, ct, folder, base + "ct.nii.gz")
    return ScanDraft(
        case_id=entry.case_id,
        patient_id=delivered.patient_id,
        state=ScanState.INGESTED,
        source_uri=delivered.policy.locations(entry),
        source_fingerprint="",
        source_sha256=content.sha256,
        imaging_sha256=content.imaging_sha256,
        ct_key=keys["ct"],
        vertebrae_key=keys.get("vertebrae"),
        mask_key=keys.get("mask"),
        series_key=keys.get("series"),
        label_ids=entry.label_ids,
        shape=ct.grid.shape,
        affine=ct.grid.affine.tolist(),
        source_shape=ct.source.shape,
        source_affine=ct.source.affine.tolist(),
        orientation=ct.source.orientation,
        detail="; ".join(image.record["remarks"]) or None if image.record else None,
    )


def spine_facts(spine: Vertebrae, **more: object) -> bytes:
    """The content of the object that `facts_key` names."""
    return json.dumps({**spine.facts(), **more}).encode()


def _as_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _store(workspace: Workspace, volume: Volume, folder: Path, key: str) -> str:
    path = folder / "canonical.nii.gz"
    nifti.write(path, volume.array, volume.grid)
    workspace.store.put_file(path, key)
    return key


def _held(workspace: Workspace, policy: Policy, arrival: Arrival, seen: Seen, error: InputError) -> ScanDraft:
    """What the catalog notes of a case that cannot be used."""
    entry, current = seen.entry, arrival.current
    known = current.patient_id if current and current.ct_key else None
    return ScanDraft(
        case_id=entry.case_id,
        patient_id=known or entry.patient_id or UNKNOWN,
        state=ScanState.QUARANTINED,
        source_uri=policy.locations(entry),
        source_fingerprint=arrival.mark(error.reason, workspace.settings),
        source_sha256=seen.content.sha256 if seen.content else None,
        label_ids=entry.label_ids,
        reason=error.reason,
        detail=str(policy.conceal(error, entry)),
        marks=seen.marks,
    )
