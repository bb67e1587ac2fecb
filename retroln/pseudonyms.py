"""Keyed pseudonyms: the same input and key give the same name, and without the key nothing leads back.

Everything is HMAC-SHA256 (RFC 2104) under one secret, each use under a label of its own, so that a patient's
pseudonym says nothing about a key's or a UID's. A name counts in its one spelling (`canonical`), an object's
key by its bytes: two spellings are two objects.
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from base64 import b32encode
from dataclasses import dataclass, field

from retroln.errors import SettingsError

MIN_KEY_CHARACTERS = 32  # RFC 2104, 3: a key shorter than the hash (32 bytes) is strongly discouraged
MAX_SHIFT_DAYS = 3650
_NOBODY = (
    *("anon", "anonym", "anonymous", "anonymised", "anonymized", "de-identified", "deidentified", "removed"),
    *("n/a", "no-id", "noid", "none", "not-known", "null", "unknown", "unnamed"),
    *("anonyme", "anonymisiert", "anonymous-patient", "no-name", "noname", "patient", "phantom", "test"),
    *("testpatient", "n.n.", "unbekannt"),
)
_DIGITS = 16  # base 32: 80 bits, so two of a million names meet with a probability of 4e-13


def canonical(name: str) -> str:
    """The one spelling of a name: canonically equivalent texts are the same one (UAX 15, NFC).

    Nothing else is taken for the same: letters that merely look alike, small and capital ones, and the wide
    and narrow forms of a letter (NFKC) may tell two people apart.
    """
    return unicodedata.normalize("NFC", name)


def names_nobody(name: str) -> bool:
    """Whether a patient's id is none, a word for none, or marks alone: many people's scans may bear it."""
    word = re.sub(r"[\s_^-]+", "-", name.casefold()).strip("-")
    if word in _NOBODY or set(word.split("-")) <= set(_NOBODY):
        return True
    return not any(letter.isalnum() or not letter.isascii() for letter in word)


@dataclass(frozen=True)
class Pseudonyms:
    """Names, UIDs and date shifts under one key."""

    secret: bytes = field(repr=False)

    @classmethod
    def under(cls, key: str) -> Pseudonyms:
        """With the text of `RETROLN_PSEUDONYM_KEY`.

        Raises:
            SettingsError: the key is too short to keep anything secret.
        """
        if len(key) < MIN_KEY_CHARACTERS:
            raise SettingsError(
                "RETROLN_PSEUDONYM_KEY is too short",
                expected=f"{MIN_KEY_CHARACTERS} characters or more",
                got=f"{len(key)}",
                fix='make one: python -c "import secrets; print(secrets.token_hex(32))"',
            )
        return cls(key.encode())

    def patient(self, name: str) -> str:
        """Of a patient's id, P-... with 16 letters and digits; a DICOM PatientID is such an id, too."""
        return self._name("P", "patient", canonical(name))

    def case(self, name: str) -> str:
        """Of a case's id, C-..."""
        return self._name("C", "case", canonical(name))

    def source(self, key: str) -> str:
        """Of an object's key in the source, S-...; `retroln source find` leads back."""
        return self._name("S", "source", key)

    def uid(self, uid: str) -> str:
        """Another UID, always the same for the same one: 2.25.<decimal of a UUID> (PS3.5 B.2)."""
        digits = bytearray(self._digest("uid", uid)[:16])
        digits[6] = digits[6] & 0x0F | 0x80  # version 8, made by a rule of one's own (RFC 9562 5.8)
        digits[8] = digits[8] & 0x3F | 0x80
        return f"2.25.{int.from_bytes(digits, 'big')}"

    def shift_days(self, patient_id: str) -> int:
        """How many days earlier all dates of this patient are stored: 1 to 3650."""
        return 1 + int.from_bytes(self._digest("days", patient_id)[:8], "big") % MAX_SHIFT_DAYS

    def _name(self, letter: str, label: str, name: str) -> str:
        return f"{letter}-{b32encode(self._digest(label, name)).decode()[:_DIGITS]}"

    def _digest(self, label: str, text: str) -> bytes:
        # a file's name need not be text
        return hmac.digest(self.secret, f"{label}\0{text}".encode(errors="surrogatepass"), "sha256")
