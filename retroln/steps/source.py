"""From a pseudonym back to the source: for the operator, who has the key and may read the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retroln.errors import InputError, NotFoundError
from retroln.imaging.dicom import archive
from retroln.imaging.dicom.headers import is_dicom, read_instance
from retroln.settings import Settings
from retroln.steps.cohort import list_cases, parts_of
from retroln.steps.entry import CaseEntry
from retroln.steps.identity import Policy
from retroln.steps.workspace import Workspace, open_workspace

_LOOKED_AT = 20  # files of a study, until one names its patient


def find(settings: Settings, pseudonym: str) -> list[str]:
    """Keys that a pseudonym stands for: an object or folder (S-), the parts of a case (C-) or patient (P-).

    A patient who is named by DICOM headers alone is looked for in these, case by case.

    Raises:
        SettingsError: the key is not set.
        NotFoundError: nothing in the source has this pseudonym under this key.
    """
    workspace, policy = open_workspace(settings), Policy.of(settings)
    policy.pseudonyms("finding a pseudonym")
    kind = pseudonym[:2]
    found = {
        "S-": lambda: [key for name, key in policy.names(workspace.source) if name == pseudonym],
        "C-": lambda: list(_of_case(workspace, policy, pseudonym)),
        "P-": lambda: list(_of_patient(workspace, policy, pseudonym)),
    }.get(kind, list)()
    if not found:
        raise NotFoundError(
            f"nothing in the source is called {pseudonym}",
            expected="S-, C- or P- and 16 letters and digits, made under this key",
            fix="check the pseudonym, and that RETROLN_PSEUDONYM_KEY is the one it was made under",
        )
    return found


def _entries(workspace: Workspace, policy: Policy) -> Iterator[CaseEntry]:
    for entry in list_cases(workspace.source, workspace.settings.label_ids, any_id=policy.replaced):
        yield from entry.listed


def _of_case(workspace: Workspace, policy: Policy, pseudonym: str) -> Iterator[str]:
    for entry in _entries(workspace, policy):
        if policy.entry(entry).case_id == pseudonym:
            yield from entry.keys.values()


def _of_patient(workspace: Workspace, policy: Policy, pseudonym: str) -> Iterator[str]:
    for entry in _entries(workspace, policy):
        if (policy.entry(entry).patient_id or _in_headers(workspace, policy, entry)) == pseudonym:
            yield from entry.keys.values()


def _in_headers(workspace: Workspace, policy: Policy, entry: CaseEntry) -> str:
    """Pseudonym of the PatientID in the first headers that have one; "" if none can be read."""
    try:
        with workspace.scratch() as folder:
            for path in _files(workspace, entry, folder):
                if is_dicom(path) and (patient_id := read_instance(path).patient_id):
                    return policy.pseudonyms("DICOM").patient(patient_id)
    except InputError:
        return ""
    return ""


def _files(workspace: Workspace, entry: CaseEntry, folder: Path) -> Iterator[Path]:
    for number, info in enumerate(parts_of(entry, workspace.source)["ct"][:_LOOKED_AT]):
        path = folder / str(number)
        workspace.source.get_file(info.key, path)
        yield from archive.unpack(path, folder / "unpacked")[:_LOOKED_AT] if archive.is_zip(path) else (path,)
