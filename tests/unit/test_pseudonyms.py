"""Pseudonyms: the same under one key, another under every other key, and never the thing itself."""

from __future__ import annotations

import re
import unicodedata
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retroln.errors import SettingsError
from retroln.pseudonyms import MAX_SHIFT_DAYS, Pseudonyms, names_nobody
from retroln.settings import Settings

KEY, OTHER = "a" * 32, "b" * 32


@given(st.text(st.characters(exclude_categories=()), min_size=1, max_size=40))
@example("caf\udce9")  # of a file whose name is no UTF-8
def test_names_are_stable_keyed_and_usable_as_ids(name: str) -> None:
    known, other = Pseudonyms.under(KEY), Pseudonyms.under(OTHER)
    for kind, letter in (("patient", "P"), ("case", "C"), ("source", "S")):
        made = getattr(known, kind)(name)
        assert made == getattr(Pseudonyms.under(KEY), kind)(name)
        assert made != getattr(other, kind)(name)
        assert re.fullmatch(rf"{letter}-[A-Z2-7]{{16}}", made)
    assert known.patient(name)[2:] != known.case(name)[2:]


@given(st.from_regex(r"1\.2\.[1-9]\d{0,20}(\.[1-9]\d{0,8}){0,3}", fullmatch=True))
def test_uids_are_valid_uuids_under_the_root_for_uuids(uid: str) -> None:
    made = Pseudonyms.under(KEY).uid(uid)
    root, _, number = made.rpartition(".")
    assert root == "2.25" and len(made) <= 64
    found = uuid.UUID(int=int(number))
    assert (found.version, found.variant) == (8, uuid.RFC_4122)
    assert made != Pseudonyms.under(OTHER).uid(uid)


def test_shifts_are_one_per_patient_and_spread() -> None:
    known = Pseudonyms.under(KEY)
    shifts = [known.shift_days(f"P{number}") for number in range(2000)]
    assert 1 <= min(shifts) < 50 and MAX_SHIFT_DAYS - 50 < max(shifts) <= MAX_SHIFT_DAYS
    assert known.shift_days("P0") == shifts[0]


def test_a_short_key_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="32 characters") as caught:
        Pseudonyms.under("short-key")
    assert "short-key" not in str(caught.value)
    assert "aaaa" not in repr(Pseudonyms.under(KEY))


def test_the_key_is_a_secret_of_the_settings() -> None:
    settings = Settings(pseudonym_key=KEY)
    assert KEY not in repr(settings) and KEY not in settings.model_dump_json()
    with pytest.raises(SettingsError) as caught:
        Settings(pseudonym_key=["not", KEY])
    assert KEY not in str(caught.value)


def test_an_expression_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="RETROLN_MASK_NAMES"):
        Settings(mask_names="(")


@pytest.mark.parametrize(
    ("name", "patient", "case"),
    [
        ("4711", "P-H7XDVYLDNPFDA5K7", "C-AHJU2FLAZV4NKM56"),
        ("Smith, John", "P-ZT2XBSWMCWCBPAP6", "C-RMLDXMHESBA3EZO7"),
        ("S\u00f6derstr\u00f6m, \u00c5sa", "P-UPSQAYMGGDHX5IV3", "C-C4AGEM744UTOU6UZ"),
        ("\u5c71\u7530^\u592a\u90ce", "P-XTD2TUIXXTV3EO6M", "C-V53AIW6CMMOBEWG2"),
    ],
)
def test_pseudonyms_stay_what_they_were(name: str, patient: str, case: str) -> None:
    """Catalogs hold them. A name decomposed, as macOS hands it over, is the same name composed."""
    known = Pseudonyms.under(KEY)
    for spelling in (name, unicodedata.normalize("NFD", name)):
        assert (known.patient(spelling), known.case(spelling)) == (patient, case)


def test_an_object_counts_by_its_bytes() -> None:
    known = Pseudonyms.under(KEY)
    composed, decomposed = (unicodedata.normalize(form, "\u00c5sa/ct.nii.gz") for form in ("NFC", "NFD"))
    assert known.source(composed) != known.source(decomposed)


@pytest.mark.parametrize("other", ["Smith", "SMITH", "smith ", "\uff53mith", "sm\u0131th", "smi\u200bth"])
def test_names_that_look_alike_stay_apart(other: str) -> None:
    assert Pseudonyms.under(KEY).patient("smith") != Pseudonyms.under(KEY).patient(other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "Anonymous",
        "UNKNOWN",
        "No ID",
        "n/a",
        "--",
        "De-Identified",
        "^",
        "Anonymous^",
        "ANON^^",
        "Test  Patient",
        "unknown^unknown",
        "anonymized_patient",
    ],
)
def test_a_word_for_no_id_names_nobody(name: str) -> None:
    assert names_nobody(name)


@pytest.mark.parametrize(
    "name",
    ["0", "P", "x1", "NA", "Nemo", "anonymous-7", "PATIENT_7", "tester", "\u5f20\u4f1f", "M\udcfcller"],
)
def test_an_id_names_somebody(name: str) -> None:
    assert not names_nobody(name)
