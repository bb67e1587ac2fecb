"""Cases by their keys: `<patient>/<case>/` and fixed names in it; DICOM needs no patient above the case.

Capitals in the fixed names do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from retroln.endings import DICOM, NIFTI, ZIP, ambiguous, by_small_letters, has_ending
from retroln.errors import InputError
from retroln.settings import LabelScheme
from retroln.steps.entry import UNKNOWN, CaseEntry, is_id
from retroln.steps.folder_listing import shown
from retroln.storage.base import ObjectInfo

_DICOM_FOLDER = "dicom"
_CT_PARTS = ("ct.nii.gz", "ct.nii", "ct.zip", "ct.dcm", "dicom/")
_VERTEBRAE_PARTS = ("vertebrae.nii.gz", "vertebrae.nii", "vertebrae/")
_MASK_PARTS = ("mask.nii.gz", "mask.nii", "mask.dcm")
_PARTS = frozenset(name.rstrip("/") for name in (*_CT_PARTS, *_VERTEBRAE_PARTS, *_MASK_PARTS))


def from_keys(infos: Iterable[ObjectInfo], default: LabelScheme, any_id: bool) -> list[CaseEntry]:
    """Every case that the keys name, and what may be one and lies in the wrong place."""
    cases: dict[tuple[str, str], set[str]] = {}
    tops: dict[str, set[str]] = {}
    loose = []
    for info in infos:
        first, *rest = info.key.split("/")
        tops.setdefault(first, set()).update(rest[:1])
        if len(rest) >= 2:
            cases.setdefault((first, rest[0]), set()).add(rest[1])
        elif has_ending(info.key, *NIFTI, DICOM, ZIP) or "." not in info.key.rsplit("/", 1)[-1]:
            loose.append(info.key)  # without an ending: a link to a folder
    studies = _dicom_folders(cases)
    bare = {top for top, names in tops.items() if _is_bare(names, studies.get(top, set()))}
    listed = [_from_folder("", top, f"{top}/", tops[top], default) for top in bare]
    listed += [
        _from_folder(patient, case, f"{patient}/{case}/", names, default)
        for (patient, case), names in cases.items()
        if not (patient in bare and case.lower() in _PARTS)
    ]
    listed = listed if any_id else [_with_usable_ids(entry) for entry in listed]
    return listed + [_misplaced(key, default) for key in _together(loose, bare)]


def _dicom_folders(cases: dict[tuple[str, str], set[str]]) -> dict[str, set[str]]:
    """By folder at the top: names in what may be the folder of its study, in small letters."""
    found: dict[str, set[str]] = {}
    for (top, name), inside in cases.items():
        if name.lower() == _DICOM_FOLDER:
            found.setdefault(top, set()).update(each.lower() for each in inside)
    return found


def _is_bare(names: set[str], in_study: set[str]) -> bool:
    """Whether a folder at the top is a DICOM case without a patient, rather than a patient with cases."""
    has_object = not {name.lower() for name in names}.isdisjoint(("ct.zip", "ct.dcm"))
    return has_object or bool(in_study and not in_study & _PARTS)


def _together(loose: list[str], bare: set[str]) -> list[str]:
    """Loose keys that belong to no bare case; several files of one folder that may be DICOM count as one."""
    left = [
        key
        for key in loose
        if not (key.partition("/")[0] in bare and key.partition("/")[2].lower() in _PARTS)
    ]
    slices: dict[str, list[str]] = {}
    for key in left:
        if "/" in key and not has_ending(key, *NIFTI, ZIP):
            slices.setdefault(key.partition("/")[0], []).append(key)
    many = {top for top, keys in slices.items() if len(keys) > 1}
    grouped = {key for top in many for key in slices[top]}
    return [key for key in left if key not in grouped] + [f"{top}/" for top in sorted(many)]


def _misplaced(key: str, default: LabelScheme) -> CaseEntry:
    """What may be a case and lies in no case folder is held and named, not passed over."""
    problem = InputError(
        "the object lies in no case folder",
        reason="misplaced",
        file=key,
        expected="<patient>/<case>/ct.nii.gz, or dicom/ there",
        got=key,
        fix="move it into a case folder (links that leave the source are not followed), or write cases.csv",
    )
    return CaseEntry(f"misplaced:{key}", UNKNOWN, key, label_ids=default, problem=problem)


def _from_folder(patient: str, case: str, base: str, names: set[str], default: LabelScheme) -> CaseEntry:
    spelt = by_small_letters(names)

    def part(candidates: tuple[str, ...]) -> str | None:
        wanted = next((name for name in candidates if name.rstrip("/") in spelt), None)
        return wanted and base + spelt[wanted.rstrip("/")][0] + "/" * wanted.endswith("/")

    ct = part(_CT_PARTS)
    return CaseEntry(
        case_id=case,
        patient_id=patient,
        ct=ct or base + "ct.nii.gz",
        vertebrae=part(_VERTEBRAE_PARTS),
        label_ids=default,
        mask=part(_MASK_PARTS),
        problem=_spelt_twice(base, spelt) or (None if ct else _no_ct(base, sorted(names))),
    )


def _spelt_twice(base: str, spelt: Mapping[str, list[str]]) -> InputError | None:
    twice = [several for name, several in spelt.items() if name in _PARTS and len(several) > 1]
    return ambiguous(twice[0], base) if twice else None


def _no_ct(base: str, names: list[str]) -> InputError:
    return InputError(
        "the case has no CT",
        reason="missing_object",
        file=base + "ct.nii.gz",
        expected=", ".join(_CT_PARTS),
        got=shown(names),
        fix="upload the CT under one of these names, or rename it; or write cases.csv",
    )


def _with_usable_ids(entry: CaseEntry) -> CaseEntry:
    """The entry, with a problem if a folder's name cannot be an id."""
    names = [name for name in (entry.patient_id, entry.case_id) if name]
    unusable = [name for name in names if not is_id(name)]
    return replace(entry, problem=_bad_name("/".join(names) + "/", unusable[0])) if unusable else entry


def _bad_name(folder: str, name: str) -> InputError:
    return InputError(
        "the folder's name cannot be an id",
        reason="bad_name",
        file=folder,
        expected="at most 100 letters, digits, '.', '_', '-', beginning with a letter or digit",
        got=repr(name),
        fix="rename the folder, or list the case in cases.csv",
    )
