"""One case of the source as it was listed, before anything of it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from retroln.endings import DICOM, ZIP, has_ending
from retroln.errors import InputError
from retroln.pseudonyms import canonical
from retroln.settings import LabelScheme

UNNAMED = "unnamed:"
"""Begins the id of a DICOM case that was listed without one; a keyed pseudonym takes its place."""
UNKNOWN = "unknown"
"""Patient of what is held before anybody knows whose it is."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class CaseEntry:
    """One case of the source as listed; `problem` says why it cannot even be fetched.

    Attributes:
        patient_id: "" when the DICOM headers are to say it.
        ct: key of an object, or of a folder (it ends in "/").
        series: SeriesInstanceUID or series number to use of a DICOM study, None to go by the rule.
        twins: what else the source lists under the same case id; a case that has any has a problem.
    """

    case_id: str
    patient_id: str
    ct: str
    vertebrae: str | None = None
    label_ids: LabelScheme = "totalseg-v2"
    mask: str | None = None
    problem: InputError | None = None
    series: str | None = None
    twins: tuple[CaseEntry, ...] = ()

    @property
    def listed(self) -> tuple[CaseEntry, ...]:
        """The case as often as the source lists it."""
        return (self, *self.twins)

    @property
    def is_named_dicom(self) -> bool:
        """Whether the CT's key says DICOM; one that does not may hold it all the same."""
        return self.problem is None and is_named_dicom(self.ct)

    @property
    def keys(self) -> dict[str, str]:
        """Key of each part, by part name."""
        named = {"ct": self.ct, "vertebrae": self.vertebrae, "mask": self.mask}
        return {name: key for name, key in named.items() if key}


def is_named_dicom(key: str) -> bool:
    """Whether a CT's key says that it is DICOM: a folder, an archive or an object."""
    return key.endswith("/") or has_ending(key, ZIP, DICOM)


def spelled(name: str) -> str:
    """An id as it is kept and looked up: in its one spelling, as text, which a file's name need not be."""
    return canonical(name.encode(errors="backslashreplace").decode())


def is_id(text: str, any_id: bool = False) -> bool:
    """Whether a text can be an id as it stands; with `any_id`, whether there is one at all."""
    return bool(text) if any_id else bool(_ID.fullmatch(text))
