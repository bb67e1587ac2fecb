"""Which cases a source holds, and what belongs together: a `cases.csv`, or keys by patient and case.

`cases.csv` has the columns case_id, patient_id, ct and, optionally, vertebrae, label_ids, mask, series (see
`cases_table`); paths are relative to it. Without one, keys are `<patient>/<case>/ct.nii.gz` (or .nii;
`ct.zip`, `ct.dcm` or `dicom/` for DICOM), `vertebrae.nii.gz` or `vertebrae/`, and `mask.nii.gz` (or .nii,
.dcm). A case id is always matched whole. DICOM may come without ids, since its headers say whose it is.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, get_args

from retroln.endings import GZIP, has_ending
from retroln.errors import InputError, NotFoundError, UserError
from retroln.pseudonyms import names_nobody
from retroln.settings import LabelScheme
from retroln.steps import cases_table
from retroln.steps.case_folders import from_keys
from retroln.steps.cases_table import CASES_FILE
from retroln.steps.entry import UNNAMED, CaseEntry, is_id, is_named_dicom, spelled
from retroln.storage.base import ObjectInfo, ObjectStore

Parts = dict[str, tuple[ObjectInfo, ...]]
"""The objects behind a case, by part name."""
MAX_OBJECTS = 20_000
MAX_BYTES = 16 << 30
"""Bounds of one case's CT, the same as of an archive: what is more is no CT study of one patient."""


class Listing(Protocol):
    """What it takes to find the objects behind a case; methods as of `ObjectStore`."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]: ...

    def stat(self, key: str) -> ObjectInfo: ...


def list_cases(
    source: ObjectStore, default_label_ids: LabelScheme, *, any_id: bool = False
) -> tuple[CaseEntry, ...]:
    """Every case of the source exactly once, in order of case id.

    Args:
        any_id: take ids of any characters; for ids that are replaced by pseudonyms.

    Raises:
        UserError: `cases.csv` itself cannot be read, so that nothing can be accounted for.
    """
    try:
        rows = cases_table.rows(source.get_bytes(CASES_FILE))
    except NotFoundError:
        entries = from_keys(_without_table(source), default_label_ids, any_id)
    else:
        entries = [_entry(row, default_label_ids, any_id) for row in rows]
    entries = [_of_somebody(_spelled(entry)) for entry in entries]
    return tuple(sorted(_merge_duplicates(entries), key=lambda entry: entry.case_id))


def _without_table(source: ObjectStore) -> Iterator[ObjectInfo]:
    """What the source lists; a table that goes unread for its name alone is not passed over."""
    for info in source.list():
        if info.key.lower() == CASES_FILE:
            raise UserError(
                "the table of the cases has another name",
                file=info.key,
                expected=CASES_FILE,
                fix=f"call it {CASES_FILE}, or take it away to list the cases by their keys",
            )
        yield info


def parts_of(entry: CaseEntry, source: Listing) -> Parts:
    """The objects behind a case: `ct` (one, or all below a folder), `vertebrae` (one, or a folder's), `mask`.

    Raises:
        InputError: `missing_object`, naming the key; `too_large`.
    """
    parts: Parts = {"ct": _objects(source, entry.ct, nested=True)}
    _require_bounded(parts["ct"], entry.ct)
    if entry.mask:
        parts["mask"] = (_stat(source, entry.mask),)
    if entry.vertebrae:
        parts["vertebrae"] = _objects(source, entry.vertebrae)
    return parts


def stage_local(cases_csv: Path, folder: Path) -> None:
    """Copy what a local `cases.csv` names (relative or absolute paths) into `folder` as a source.

    What lay in `folder` before is gone: an old file must not stand in for one that is missing now.
    """
    rows = [row.cells for row in cases_table.rows(cases_csv.read_bytes())]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        staged = Path(scratch, "source")
        staged.mkdir()
        for number, row in enumerate(rows):
            for column in ("ct", "vertebrae", "mask"):
                if row.get(column):
                    row[column] = _stage(cases_csv.parent / row[column], staged, f"{number:04d}-{column}")
        with (staged / CASES_FILE).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, cases_table.CASES.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)


def _stage(path: Path, folder: Path, name: str) -> str:
    if path.is_dir():
        shutil.copytree(path, folder / name)
        return f"{name}/"
    target = f"{name}.nii.gz" if has_ending(path.name, GZIP) else f"{name}{path.suffix.lower()}"
    if path.exists():
        shutil.copyfile(path, folder / target)
    return target


def _entry(read: cases_table.Row, default: LabelScheme, any_id: bool) -> CaseEntry:
    row, line = read.cells, read.line
    scheme = row.get("label_ids") or default
    says_whose = is_named_dicom(row["ct"])  # its headers name the patient
    case_id = row["case_id"] or (UNNAMED + row["ct"] if says_whose else "")
    entry = CaseEntry(
        case_id or f"line-{line}",
        row["patient_id"],
        row["ct"],
        row.get("vertebrae") or None,
        default,
        row.get("mask") or None,
        series=row.get("series") or None,
    )
    if read.beyond:
        problem = _bad_row(
            line,
            "the line",
            "a cell for each column, those with a delimiter in quotes",
            f"{read.beyond} more",
        )
    elif scheme not in get_args(LabelScheme):
        problem = _bad_row(line, "label_ids", " | ".join(get_args(LabelScheme)), scheme)
    elif not (is_id(row["case_id"], any_id) or case_id.startswith(UNNAMED)):
        problem = _bad_row(line, "case_id", "letters, digits, '.', '_', '-'", repr(row["case_id"]))
        entry = replace(entry, case_id=f"line-{line}")
    elif not (is_id(row["patient_id"], any_id) or (says_whose and not row["patient_id"])):
        problem = _bad_row(line, "patient_id", "letters, digits, '.', '_', '-'", repr(row["patient_id"]))
    elif not row["ct"]:
        problem = _bad_row(line, "ct", "a path relative to cases.csv", "nothing")
    else:
        return replace(entry, label_ids=scheme)  # type: ignore[arg-type]
    return replace(entry, problem=problem)


def _bad_row(line: int, column: str, expected: str, got: str) -> InputError:
    return InputError(
        f"line {line}: {column} is not usable",
        reason="bad_row",
        file=CASES_FILE,
        expected=expected,
        got=got,
        fix="correct the line",
    )


def _merge_duplicates(entries: list[CaseEntry]) -> list[CaseEntry]:
    listed: dict[str, list[CaseEntry]] = {}
    for entry in entries:
        listed.setdefault(entry.case_id, []).append(entry)
    return [_merged(case_id, same) for case_id, same in listed.items()]


def _merged(case_id: str, same: list[CaseEntry]) -> CaseEntry:
    """The one case that is listed, or the first of several with what holds it."""
    first, *others = same
    if not others:
        return first
    keys = sorted(entry.ct for entry in same)
    alike = len({spelled(key) for key in keys}) < len(set(keys))
    problem = InputError(
        f"case id {case_id} is listed {len(same)} times",
        reason="duplicate_case_id",
        expected="every case id once, in whatever spelling of Unicode",
        got=", ".join(keys) + (", which are one name composed and decomposed" if alike else ""),
        fix="keep one of the two spellings in the source" if alike else "give each scan a case id of its own",
    )
    return replace(first, problem=problem, twins=tuple(others))


def _spelled(entry: CaseEntry) -> CaseEntry:
    return replace(entry, case_id=spelled(entry.case_id), patient_id=spelled(entry.patient_id))


def _of_somebody(entry: CaseEntry) -> CaseEntry:
    """The entry, held if its patient's id is a word for having none: it would bind many people into one."""
    if entry.problem or not entry.patient_id or not names_nobody(entry.patient_id):
        return entry
    problem = InputError(
        "the listing names a patient who is nobody",
        reason="no_patient_id",
        file=entry.ct,
        expected="an id that each patient has alone",
        got=repr(entry.patient_id),
        fix="give the patient an id; leave it out for DICOM whose headers say whose it is",
    )
    return replace(entry, problem=problem)


def _stat(source: Listing, key: str) -> ObjectInfo:
    try:
        return source.stat(key)
    except NotFoundError as error:
        raise _missing(key) from error


def _objects(source: Listing, key: str, *, nested: bool = False) -> tuple[ObjectInfo, ...]:
    """The object itself, or what lies in the folder of that name; with `nested`, at any depth."""
    if not key.endswith("/"):
        try:
            return (source.stat(key),)
        except NotFoundError:
            pass
    folder = key.rstrip("/") + "/"
    found = source.list(folder)
    inside = tuple(info for info in found if nested or "/" not in info.key.removeprefix(folder))
    if not inside:
        raise _missing(key)
    return inside


def _require_bounded(infos: tuple[ObjectInfo, ...], key: str) -> None:
    size_bytes = sum(info.size_bytes for info in infos)
    if len(infos) > MAX_OBJECTS or size_bytes > MAX_BYTES:
        raise InputError(
            "more than any CT study holds",
            reason="too_large",
            file=key,
            expected=f"at most {MAX_OBJECTS} objects and {MAX_BYTES >> 30} GiB",
            got=f"{len(infos)} objects, {size_bytes >> 20} MiB",
            fix="deliver one study per case",
        )


def _missing(key: str) -> InputError:
    spelling = "" if key.isascii() else "; letters with marks may be composed here and decomposed there"
    return InputError(
        "the object is not in the source",
        reason="missing_object",
        file=key,
        expected="an existing object",
        got="nothing, or a link that leads nowhere",
        fix=f"upload it, or correct the path in {CASES_FILE} or the link{spelling}",
    )
