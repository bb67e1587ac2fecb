"""Pseudonyms: the same under one key, another under every other key, and never the thing itself."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retroln.errors import SettingsError
from retroln.pseudonyms import MAX_SHIFT_DAYS, Pseudonyms
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
