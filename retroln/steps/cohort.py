"""Which cases a source holds, and what belongs together: a `cases.csv`, or keys by patient and case.

`cases.csv` has the columns case_id, patient_id, ct and, optionally, vertebrae, label_ids, mask, series; paths
are relative to it. Without one, keys are `<patient>/<case>/ct.nii.gz` (or .nii; `ct.zip`, `ct.dcm` or
`dicom/` for DICOM), `vertebrae.nii.gz` or `vertebrae/`, and `mask.nii.gz` (or .nii, .dcm). A case id is
always matched whole. DICOM may come without ids, since its headers say whose it is.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, get_args

from retroln.errors import InputError, NotFoundError, UserError
from retroln.pseudonyms import names_nobody
from retroln.settings import LabelScheme
from retroln.steps.case_folders import from_keys
from retroln.steps.entry import UNNAMED, CaseEntry, is_id, spelled
from retroln.storage.base import ObjectInfo, ObjectStore

CASES_FILE = "cases.csv"
Parts = dict[str, tuple[ObjectInfo, ...]]
"""The objects behind a case, by part name."""
_REQUIRED = ("case_id", "patient_id", "ct")
_SAYS_WHOSE = ("/", ".zip", ".dcm")  # a CT that is surely DICOM, whose headers name the patient
_COLUMNS = (*_REQUIRED, "vertebrae", "label_ids", "mask", "series")
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
        text = source.get_bytes(CASES_FILE).decode("utf-8-sig")
    except NotFoundError:
        entries = from_keys(source.list(), default_label_ids, any_id)
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", file=CASES_FILE, got=str(error), fix="save it as UTF-8") from error
    else:
        entries = _from_csv(text, default_label_ids, any_id)
    entries = [_of_somebody(_spelled(entry)) for entry in entries]
    return tuple(sorted(_merge_duplicates(entries), key=lambda entry: entry.case_id))


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
    rows = [row for _, row in _rows(cases_csv.read_text("utf-8-sig"))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        staged = Path(scratch, "source")
        staged.mkdir()
        for number, row in enumerate(rows):
            for column in ("ct", "vertebrae", "mask"):
                if row.get(column):
                    row[column] = _stage(cases_csv.parent / row[column], staged, f"{number:04d}-{column}")
        with (staged / CASES_FILE).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, _COLUMNS)
            writer.writeheader()
            writer.writerows({column: row.get(column) or "" for column in _COLUMNS} for row in rows)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)


def _stage(path: Path, folder: Path, name: str) -> str:
    if path.is_dir():
        shutil.copytree(path, folder / name)
        return f"{name}/"
    target = f"{name}.nii.gz" if path.name.endswith(".gz") else f"{name}{path.suffix}"
    if path.exists():
        shutil.copyfile(path, folder / target)
    return target


def _rows(text: str) -> list[tuple[int, dict[str, str]]]:
    """Each row with the number of its (last) line."""
    reader = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in reader.fieldnames or []]
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise UserError(
            "columns are missing",
            file=CASES_FILE,
            expected=",".join(_COLUMNS),
            got=",".join(columns) or "an empty file",
            fix=f"add {', '.join(missing)}",
        )
    reader.fieldnames = columns
    return [
        (reader.line_num, {k: (v or "").strip() for k, v in row.items() if k in _COLUMNS}) for row in reader
    ]


def _from_csv(text: str, default: LabelScheme, any_id: bool) -> list[CaseEntry]:
    return [_entry(row, line, default, any_id) for line, row in _rows(text)]


def _entry(row: dict[str, str], line: int, default: LabelScheme, any_id: bool) -> CaseEntry:
    scheme = row.get("label_ids") or default
    says_whose = row["ct"].endswith(_SAYS_WHOSE)
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
    if scheme not in get_args(LabelScheme):
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
    counts = Counter(entry.case_id for entry in entries)
    merged = {entry.case_id: entry for entry in reversed(entries)}
    for case_id, count in counts.items():
        if count > 1:
            listed = sorted(entry.ct for entry in entries if entry.case_id == case_id)
            problem = InputError(
                f"case id {case_id} is listed {count} times",
                reason="duplicate_case_id",
                expected="every case id once",
                got=", ".join(listed),
                fix="give each scan a case id of its own",
            )
            merged[case_id] = replace(merged[case_id], problem=problem)
    return list(merged.values())


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
    return InputError(
        "the object is not in the source",
        reason="missing_object",
        file=key,
        expected="an existing object",
        got="nothing",
        fix="upload it or correct the listing",
    )
