"""What a file or an object is by the ending of its name: one rule, in which capitals do not matter."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from retroln.errors import InputError

NIFTI = (".nii", ".nii.gz")
DICOM = ".dcm"
ZIP = ".zip"
GZIP = ".gz"
_NIFTI = re.compile(r"\.nii(\.gz)?\Z", re.IGNORECASE | re.ASCII)


def has_ending(name: str, *endings: str) -> bool:
    """Whether a name ends in one of these, in capitals or not."""
    return name.lower().endswith(endings)


def without_nifti(name: str) -> str:
    """The name without .nii or .nii.gz."""
    return _NIFTI.sub("", name)


def by_small_letters(names: Iterable[str]) -> Mapping[str, list[str]]:
    """The names, sorted, by what they are in small letters."""
    spelt: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        spelt[name.lower()].append(name)
    return spelt


def ambiguous(names: list[str], folder: str) -> InputError:
    """The error for names that differ in capitals alone: nobody can say which one is meant."""
    return InputError(
        "two files have one name but for its capitals",
        reason="ambiguous_name",
        file=folder,
        expected=f"one {names[0].lower()}",
        got=", ".join(names),
        fix="keep the right one",
    )
