"""The policy for identities: what patients, cases and source objects are called in here.

`given`: the source's ids are pseudonyms already and stay. `pseudonym`: patient id, case id and the names of
source objects are replaced by keyed pseudonyms in catalog, store, logs and messages; `retroln source find`
leads back. Under either, a DICOM case without an id gets one from its headers, under the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from retroln.errors import InputError, SettingsError, UserError
from retroln.pseudonyms import Pseudonyms, canonical
from retroln.settings import Settings
from retroln.steps.cohort import list_cases
from retroln.steps.entry import UNKNOWN, UNNAMED, CaseEntry, spelled
from retroln.storage.base import ObjectStore

NO_KEY = "no_pseudonym_key"
"""Reason of a DICOM case that was delivered while there was no key."""
_MISPLACED = "misplaced:"
_LINE = re.compile(r"line-\d+")  # what a row without a usable id is called
_PATIENT = re.compile(r"P-[A-Z2-7]{16}")
_LAYOUT = re.compile(
    r"(?:ct|mask|vertebrae(?:_[TLS]\d{1,2})?)(?:\.(?:nii|nii\.gz|zip|dcm))?|dicom|cases\.csv",
    re.IGNORECASE,
)
_SHORTEST_NAME = 3  # a shorter part of a key names nobody, and would be found in every message
_HIDDEN = "[hidden]"
# what they got quotes the listing, other cases' lines and files too, or spells a name's letters otherwise
_QUOTING = ("bad_row", "duplicate_case_id", "missing_object", "unsafe_key")

Error = TypeVar("Error", bound=UserError)


@dataclass(frozen=True)
class Policy:
    """How identities are treated.

    Attributes:
        replaced: ids and object names of the source are replaced.
        known: pseudonyms under the key, None without a key.
    """

    replaced: bool
    known: Pseudonyms | None

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """What the settings say.

        Raises:
            SettingsError: ids are to be replaced and there is no key, or it is too short.
        """
        key = settings.pseudonym_key
        policy = cls(
            settings.identity == "pseudonym", Pseudonyms.under(key.get_secret_value()) if key else None
        )
        if policy.replaced:
            policy.pseudonyms("RETROLN_IDENTITY=pseudonym")
        return policy

    def pseudonyms(self, what: str) -> Pseudonyms:
        """The key's pseudonyms, which `what` needs. Raises `SettingsError` without a key."""
        if self.known is None:
            raise SettingsError(
                f"{what} needs RETROLN_PSEUDONYM_KEY, which is not set",
                expected="a secret of 32 characters or more, kept apart from the data",
                fix='make one, once for good: python -c "import secrets; print(secrets.token_hex(32))"',
            )
        return self.known

    def for_dicom(self, file: str) -> Pseudonyms:
        """The key's pseudonyms, without which no DICOM is taken in.

        Raises:
            InputError: `no_pseudonym_key`; the case waits for the key, and is taken in once there is one.
        """
        if self.known is None:
            raise InputError(
                "DICOM is taken in only under a key for pseudonyms, and none is set",
                reason=NO_KEY,
                file=file,
                expected="RETROLN_PSEUDONYM_KEY, a secret of 32 characters or more",
                got="nothing",
                fix="make one, once for good, set it, and ingest again: "
                'python -c "import secrets; print(secrets.token_hex(32))"',
            )
        return self.known

    def list(self, source: ObjectStore, settings: Settings) -> tuple[CaseEntry, ...]:
        """Every case of the source under the name that it has in here, in order of case id.

        Raises:
            UserError: `cases.csv` cannot be read.
            SettingsError: a DICOM case has no id, and there is no key.
        """
        entries = list_cases(source, settings.label_ids, any_id=self.replaced)
        return tuple(sorted((self.entry(entry) for entry in entries), key=lambda entry: entry.case_id))

    def entry(self, entry: CaseEntry) -> CaseEntry:
        """The entry under its name in here; keys stay the source's own, since they are still to be read."""
        ids = (entry.case_id, entry.patient_id)
        entry = replace(entry, twins=tuple(self.entry(twin) for twin in entry.twins))
        if entry.case_id.startswith(UNNAMED):
            named = self.pseudonyms("a DICOM case without an id").case(entry.case_id)
            entry = replace(entry, case_id=named)
        elif self.replaced and entry.case_id.startswith(_MISPLACED):
            entry = replace(entry, case_id=_MISPLACED + self.key(entry.ct))
        elif self.replaced and not _LINE.fullmatch(entry.case_id):
            entry = replace(entry, case_id=self.pseudonyms("").case(entry.case_id))
        if not self.replaced:
            return entry
        if entry.patient_id not in ("", UNKNOWN):
            entry = replace(entry, patient_id=self.pseudonyms("").patient(entry.patient_id))
        if entry.problem is None:
            return entry
        return replace(entry, problem=self.conceal(entry.problem, entry, *ids))

    def patient(self, name: str) -> str:
        """What a patient is called in here, by the source's id or by the pseudonym itself."""
        if not self.replaced or _PATIENT.fullmatch(name):
            return name
        return self.pseudonyms("").patient(spelled(name))

    def key(self, key: str) -> str:
        """What an object, or a folder, of the source is called in here."""
        return self.pseudonyms("").source(key) if self.replaced else key

    def names(self, source: ObjectStore) -> Iterator[tuple[str, str]]:
        """Pseudonym and key of every object in the source, and of every folder with its slash and without."""
        known, seen = self.pseudonyms("a pseudonym"), set()
        for info in source.list():
            pieces = info.key.split("/")
            folders = ("/".join(pieces[:depth]) for depth in range(1, len(pieces)))
            for key in (info.key, *(name for folder in folders for name in (folder, f"{folder}/"))):
                if key not in seen:
                    seen.add(key)
                    yield known.source(key), key

    def locations(self, entry: CaseEntry) -> dict[str, str]:
        """Names of the case's parts, as the catalog keeps them."""
        return {part: self.key(key) for part, key in entry.keys.items()}

    def object_name(self, folder: str, key: str) -> str:
        """What one object of a folder is called in messages; its own name may be a patient's."""
        return f"{self.key(folder)} (object {self.pseudonyms('DICOM').source(key)})"

    def conceal(self, error: Error, entry: CaseEntry, *ids: str) -> Error:
        """The error without names of the source, where these are replaced.

        Args:
            ids: patient's and case's ids of the source, where they are known.
        """
        if not self.replaced:
            return error
        if not isinstance(error, InputError):  # a server's: it names the object and quotes the server
            return error.reworded(file=None, got=None)
        texts = {name: getattr(error, name) for name in ("what", "expected", "got", "fix")}
        said = {name: self._clean(str(text), entry, ids) for name, text in texts.items() if text}
        file = str(error.file or "")
        if error.reason in _QUOTING:
            said["got"] = ""
            file = file or entry.ct
        return error.reworded(**said, file=self._file(file, entry) if file else None)

    def _file(self, file: str, entry: CaseEntry) -> str:
        for key in entry.keys.values():
            if file == key:
                return self.key(key)
            if key.endswith("/") and file.startswith(key):
                return self.object_name(key, file)
        return self._clean(file, entry, ())

    def _clean(self, text: str, entry: CaseEntry, ids: Sequence[str]) -> str:
        """The text with keys replaced by their pseudonyms, and what is left of their parts hidden."""
        for key in sorted(entry.keys.values(), key=len, reverse=True):
            text = text.replace(key, self.key(key))
        pieces = {piece for key in entry.keys.values() for piece in key.split("/")}
        spellings = {spelt for piece in (*pieces, *ids) for spelt in (piece, canonical(piece))}
        names = {name for piece in spellings for name in (piece, piece.split(".")[0])}
        for name in sorted(names, key=len, reverse=True):
            if len(name) >= _SHORTEST_NAME and not _LAYOUT.fullmatch(name):
                text = re.sub(re.escape(name), _HIDDEN, text, flags=re.IGNORECASE)
        return text

    def withheld(self, error: Exception) -> str:
        """What is said of an unforeseen error whose text may name a patient."""
        last, frame = error.__traceback__, "unknown place"
        while last is not None:
            frame = f"{last.tb_frame.f_globals.get('__name__', '?')}:{last.tb_lineno}"
            last = last.tb_next
        return f"{type(error).__name__} in {frame}; its text is withheld, it may name the patient"
