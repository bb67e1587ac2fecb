"""Which cases a source holds, and what belongs together: a `cases.csv`, or keys by patient and case.

`cases.csv` has the columns case_id, patient_id, ct and, optionally, vertebrae, label_ids, mask; paths
are relative to it. Without one, keys are `<patient>/<case>/ct.nii.gz`, `vertebrae.nii.gz` or
`vertebrae/`, and `mask.nii.gz` (or .nii). A case id is always matched whole.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from retroln.errors import InputError, NotFoundError, UserError
from retroln.settings import LabelScheme
from retroln.storage.base import ObjectInfo, ObjectStore

CASES_FILE = "cases.csv"
_REQUIRED = ("case_id", "patient_id", "ct")
_COLUMNS = (*_REQUIRED, "vertebrae", "label_ids", "mask")
_IMAGE = (".nii", ".nii.gz")
_CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class CaseEntry:
    """One case of the source as listed; `problem` says why it cannot even be fetched."""

    case_id: str
    patient_id: str
    ct: str
    vertebrae: str | None = None
    label_ids: LabelScheme = "totalseg-v2"
    mask: str | None = None
    problem: InputError | None = None


def list_cases(source: ObjectStore, default_label_ids: LabelScheme) -> tuple[CaseEntry, ...]:
    """Every case of the source exactly once, in order of case id.

    Raises:
        UserError: `cases.csv` itself cannot be read, so that nothing can be accounted for.
    """
    try:
        text = source.get_bytes(CASES_FILE).decode("utf-8-sig")
    except NotFoundError:
        entries = _from_keys(source.list(), default_label_ids)
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", file=CASES_FILE, got=str(error), fix="save it as UTF-8") from error
    else:
        entries = _from_csv(text, default_label_ids)
    return tuple(sorted(_merge_duplicates(entries), key=lambda entry: entry.case_id))


def parts_of(entry: CaseEntry, source: ObjectStore) -> dict[str, tuple[ObjectInfo, ...]]:
    """The objects behind a case: `ct`, and `vertebrae` (one object or a folder's) and `mask` if named.

    Raises:
        InputError: `missing_object`, naming the key.
    """
    parts: dict[str, tuple[ObjectInfo, ...]] = {"ct": (_stat(source, entry.ct),)}
    if entry.mask:
        parts["mask"] = (_stat(source, entry.mask),)
    if entry.vertebrae:
        parts["vertebrae"] = _vertebrae_objects(source, entry.vertebrae)
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


def _from_csv(text: str, default: LabelScheme) -> list[CaseEntry]:
    return [_entry(row, line, default) for line, row in _rows(text)]


def _entry(row: dict[str, str], line: int, default: LabelScheme) -> CaseEntry:
    case_id = row["case_id"] or f"line-{line}"
    scheme = row.get("label_ids") or default
    entry = CaseEntry(
        case_id, row["patient_id"], row["ct"], row.get("vertebrae") or None, default, row.get("mask") or None
    )
    if scheme not in get_args(LabelScheme):
        problem = _bad_row(line, "label_ids", " | ".join(get_args(LabelScheme)), scheme)
    elif not _CASE_ID.fullmatch(row["case_id"]):
        problem = _bad_row(line, "case_id", "letters, digits, '.', '_', '-'", repr(row["case_id"]))
        entry = replace(entry, case_id=f"line-{line}")
    elif not _CASE_ID.fullmatch(row["patient_id"]):
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


def _from_keys(infos: Iterable[ObjectInfo], default: LabelScheme) -> list[CaseEntry]:
    folders: dict[tuple[str, str], set[str]] = {}
    misplaced = []
    for info in infos:
        pieces = info.key.split("/")
        if len(pieces) >= 3:
            folders.setdefault((pieces[0], pieces[1]), set()).add(pieces[2])
        elif info.key.endswith(_IMAGE) or "." not in pieces[-1]:  # without an ending: a link to a folder
            misplaced.append(_misplaced(info.key, default))
    listed = [_from_folder(patient, case, names, default) for (patient, case), names in folders.items()]
    return listed + misplaced


def _misplaced(key: str, default: LabelScheme) -> CaseEntry:
    """What may be a case and lies in no case folder is held and named, not passed over."""
    problem = InputError(
        "the object lies in no case folder",
        reason="misplaced",
        file=key,
        expected="<patient>/<case>/ct.nii.gz",
        got=key,
        fix="move it into a case folder (links that leave the source are not followed), or write cases.csv",
    )
    return CaseEntry(f"misplaced:{key}", "unknown", key, label_ids=default, problem=problem)


def _from_folder(patient: str, case: str, names: set[str], default: LabelScheme) -> CaseEntry:
    base = f"{patient}/{case}/"

    def part(*candidates: str) -> str | None:
        return next((base + name for name in candidates if name.rstrip("/") in names), None)

    entry = CaseEntry(
        case_id=case,
        patient_id=patient,
        ct=part("ct.nii.gz", "ct.nii") or base + "ct.nii.gz",
        vertebrae=part("vertebrae.nii.gz", "vertebrae.nii", "vertebrae/"),
        label_ids=default,
        mask=part("mask.nii.gz", "mask.nii"),
    )
    unusable = [name for name in (patient, case) if not _CASE_ID.fullmatch(name)]
    return replace(entry, problem=_bad_name(base, unusable[0])) if unusable else entry


def _bad_name(folder: str, name: str) -> InputError:
    return InputError(
        "the folder's name cannot be an id",
        reason="bad_name",
        file=folder,
        expected="at most 100 letters, digits, '.', '_', '-', beginning with a letter or digit",
        got=repr(name),
        fix="rename the folder, or list the case in cases.csv",
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


def _stat(source: ObjectStore, key: str) -> ObjectInfo:
    try:
        return source.stat(key)
    except NotFoundError as error:
        raise _missing(key) from error


def _vertebrae_objects(source: ObjectStore, key: str) -> tuple[ObjectInfo, ...]:
    if not key.endswith("/"):
        try:
            return (source.stat(key),)
        except NotFoundError:
            pass
    folder = key.rstrip("/") + "/"
    found = tuple(info for info in source.list(folder) if "/" not in info.key.removeprefix(folder))
    if not found:
        raise _missing(key)
    return found


def _missing(key: str) -> InputError:
    return InputError(
        "the object is not in the source",
        reason="missing_object",
        file=key,
        expected="an existing object",
        got="nothing",
        fix="upload it or correct the listing",
    )
