"""The policy for identities: what a case is called in here, and that messages keep to it."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from retroln.errors import InputError, NotFoundError, SettingsError, UnavailableError
from retroln.settings import Settings
from retroln.steps.cohort import list_cases, parts_of
from retroln.steps.entry import CaseEntry
from retroln.steps.holdings import survey
from retroln.steps.identity import Policy
from retroln.steps.source import find
from retroln.storage.base import ObjectStore
from retroln.storage.open import open_store
from tests.dicom_series import KEY


@pytest.fixture
def source(settings: Settings, tmp_path: Path) -> ObjectStore:
    (tmp_path / "source").mkdir()
    return open_store(settings.source_uri, settings)


def _replacing(settings: Settings) -> Settings:
    return Settings(**{**settings.model_dump(), "identity": "pseudonym", "pseudonym_key": KEY})


def _keyed(settings: Settings) -> Settings:
    return Settings(**{**settings.model_dump(), "pseudonym_key": KEY})


def _put(source: ObjectStore, *keys: str) -> None:
    for key in keys:
        source.put_bytes(b"x", key)


def test_given_ids_stay(source: ObjectStore, settings: Settings) -> None:
    _put(source, "P/A/ct.nii.gz")
    (entry,) = Policy.of(settings).list(source, settings)
    assert (entry.patient_id, entry.case_id) == ("P", "A")
    assert Policy.of(settings).locations(entry) == {"ct": "P/A/ct.nii.gz"}


def test_replaced_ids_of_any_characters(source: ObjectStore, settings: Settings) -> None:
    settings = _replacing(settings)
    _put(source, "Smith, John/CT abdomen 1/ct.nii.gz", "Smith, John/CT abdomen 2/ct.nii.gz", "loose.nii")
    entries = Policy.of(settings).list(source, settings)
    assert len({entry.case_id for entry in entries}) == 3
    policy = Policy.of(settings)
    patients = {policy.patient("Smith, John"), policy.patient(policy.patient("Smith, John"))}
    assert patients == {entry.patient_id for entry in entries if not entry.problem}
    for entry in entries:
        shown = f"{entry.case_id} {entry.patient_id} {entry.problem} {policy.locations(entry)}"
        assert not any(word in shown.lower() for word in ("smith", "john", "abdomen", "loose"))


def test_listing_problems_name_nobody(source: ObjectStore, settings: Settings) -> None:
    settings = _replacing(settings)
    lines = (
        "case_id,patient_id,ct,vertebrae,label_ids,mask",
        "Smith 1,Smith,smith/a.nii.gz,,,",
        "Smith 1,Smith,smith/b.nii.gz,,,",
        "Jones 1,Jones,jones/a.nii.gz,,Jones John,",
        ",Baker,baker.nii.gz,,,",
    )
    source.put_bytes("\n".join(lines).encode(), "cases.csv")
    entries = Policy.of(settings).list(source, settings)
    reasons = sorted(entry.problem.reason for entry in entries if entry.problem)
    assert reasons == ["bad_row", "bad_row", "duplicate_case_id"]
    shown = " ".join(f"{entry.case_id} {entry.patient_id} {entry.problem}" for entry in entries).lower()
    assert not any(name in shown for name in ("smith", "jones", "baker"))


@pytest.mark.parametrize(
    "error",
    [
        InputError("bad", reason="r", file="Smith_J/A 77/dicom/", got="in Smith_J/A 77/dicom/ there"),
        InputError("vanished", reason="r", file="Smith_J/A 77/dicom/SMITH^J.dcm"),
        InputError("case smith_j is bad", reason="r", file="x/smith_j.nii", got="smith_j and A 77"),
        UnavailableError("away", file="s3://b/Smith_J/A 77/x", got="http://host/b/Smith_J"),
    ],
)
def test_messages_are_cleaned(error: InputError, settings: Settings) -> None:
    policy = Policy.of(_replacing(settings))
    entry = CaseEntry("C-X", "P-X", "Smith_J/A 77/dicom/", mask="Smith_J/A 77/mask.dcm")
    said = policy.conceal(error, entry)
    assert type(said) is type(error)
    assert not any(word in str(said).lower() for word in ("smith", "a 77"))
    assert Policy.of(settings).conceal(error, entry) is error


def test_dicom_cases_need_no_ids(source: ObjectStore, settings: Settings) -> None:
    _put(source, "CASE1/dicom/a/IM1", "CASE1/dicom/b/IM2", "CASE1/mask.dcm", "CASE1/vertebrae.nii.gz")
    _put(source, "CASE2/ct.zip", "PAT/CASE3/dicom/IM1", "PAT/dicom/ct.nii.gz")
    entries = {entry.case_id: entry for entry in list_cases(source, "totalseg-v2")}
    assert set(entries) == {"CASE1", "CASE2", "CASE3", "dicom"}
    assert [entries[case].patient_id for case in ("CASE1", "CASE2", "CASE3", "dicom")] == [
        "",
        "",
        "PAT",
        "PAT",
    ]
    assert (entries["CASE1"].ct, entries["CASE1"].mask) == ("CASE1/dicom/", "CASE1/mask.dcm")
    parts = parts_of(entries["CASE1"], source)
    assert [info.key for info in parts["ct"]] == ["CASE1/dicom/a/IM1", "CASE1/dicom/b/IM2"]


def test_a_dicom_row_without_ids_is_named_by_its_key(source: ObjectStore, settings: Settings) -> None:
    source.put_bytes(b"case_id,patient_id,ct,series\n,,exports/17/,4\nB,P,b.zip,\n,,c.nii,\n", "cases.csv")
    with pytest.raises(SettingsError, match="RETROLN_PSEUDONYM_KEY"):
        Policy.of(settings).list(source, settings)
    entries = {entry.ct: entry for entry in Policy.of(_keyed(settings)).list(source, settings)}
    assert entries["exports/17/"].case_id.startswith("C-")
    assert (entries["exports/17/"].patient_id, entries["exports/17/"].series) == ("", "4")
    assert entries["b.zip"].case_id == "B"
    assert entries["c.nii"].problem is not None and entries["c.nii"].problem.reason == "bad_row"


def test_slices_in_no_case_folder_are_one_finding(source: ObjectStore) -> None:
    _put(source, *(f"P/IM{n}" for n in range(5)), "P/x.nii.gz", "single")
    entries = list_cases(source, "totalseg-v2")
    assert {entry.case_id for entry in entries} == {
        "misplaced:P/",
        "misplaced:P/x.nii.gz",
        "misplaced:single",
    }


def test_replacing_without_a_key_stops_at_once(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="RETROLN_IDENTITY=pseudonym needs RETROLN_PSEUDONYM_KEY"):
        Policy.of(Settings(**{**settings.model_dump(), "identity": "pseudonym"}))


def test_the_operator_finds_what_a_pseudonym_stands_for(source: ObjectStore, settings: Settings) -> None:
    settings = _replacing(settings)
    _put(source, "Smith/A/dicom/IM1", "Smith/A/mask.nii.gz", "Jones/B/ct.nii.gz")
    policy = Policy.of(settings)
    smith = next(e for e in policy.list(source, settings) if "Smith" in e.ct)
    assert find(settings, smith.case_id) == find(settings, smith.patient_id)
    assert find(settings, smith.case_id) == ["Smith/A/dicom/", "Smith/A/mask.nii.gz"]
    for key in ("Smith/A/dicom/", "Smith/A/dicom/IM1", "Smith/A/mask.nii.gz"):
        assert find(settings, policy.key(key)) == [key]
    with pytest.raises(NotFoundError, match="nothing in the source"):
        find(settings, "S-AAAAAAAAAAAAAAAA")
    with pytest.raises(SettingsError, match="RETROLN_PSEUDONYM_KEY"):
        find(Settings(**{**settings.model_dump(), "identity": "given", "pseudonym_key": None}), smith.case_id)


COMPOSED, DECOMPOSED = (
    unicodedata.normalize(form, "S\u00f6derstr\u00f6m, \u00c5sa") for form in ("NFC", "NFD")
)


def test_a_name_composed_and_decomposed_is_one_patient(source: ObjectStore, settings: Settings) -> None:
    settings = _replacing(settings)
    _put(source, f"{COMPOSED}/before/ct.nii.gz", f"{DECOMPOSED}/after/ct.nii.gz")
    policy = Policy.of(settings)
    entries = policy.list(source, settings)
    (patient,) = {entry.patient_id for entry in entries}
    assert not any(entry.problem for entry in entries)
    assert policy.patient(COMPOSED) == policy.patient(DECOMPOSED) == patient
    assert len(find(settings, patient)) == 2


def test_a_case_composed_and_decomposed_is_listed_twice(source: ObjectStore, settings: Settings) -> None:
    settings = _replacing(settings)
    _put(source, f"P/{COMPOSED}/ct.nii.gz", f"P/{DECOMPOSED}/ct.nii.gz")
    (entry,) = Policy.of(settings).list(source, settings)
    assert entry.problem is not None and entry.problem.reason == "duplicate_case_id"
    assert not any(name in str(entry.problem) for name in (COMPOSED, DECOMPOSED))
    assert "keep one of the two spellings" in str(entry.problem)
    keys = sorted([f"P/{COMPOSED}/ct.nii.gz", f"P/{DECOMPOSED}/ct.nii.gz"])
    assert sorted(find(settings, entry.case_id)) == sorted(find(settings, entry.patient_id)) == keys


def test_who_shares_a_case_id_with_another_is_found_all_the_same(
    source: ObjectStore, settings: Settings
) -> None:
    _put(source, "P1/SAME/ct.nii.gz", "P2/SAME/ct.nii.gz")
    for patient in ("P1", "P2"):
        found = survey(settings, patient)
        assert (found.cases, found.source) == (("SAME",), (f"{patient}/SAME/ct.nii.gz",))


def test_messages_are_cleaned_of_either_spelling(settings: Settings) -> None:
    entry = CaseEntry("C-X", "P-X", f"{DECOMPOSED}/1/ct.nii.gz")
    error = InputError(f"{COMPOSED} is bad", reason="r", got=f"{DECOMPOSED} there")
    said = str(Policy.of(_replacing(settings)).conceal(error, entry))
    assert not any(name in said for name in (COMPOSED, DECOMPOSED))


def test_a_folder_whose_name_is_no_text_is_the_patient_that_is_typed(
    source: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    settings = _replacing(settings)
    name = os.fsdecode(b"M\xfcller")
    (tmp_path / "source" / name / "A").mkdir(parents=True)
    (tmp_path / "source" / name / "A" / "ct.nii.gz").write_bytes(b"x")
    policy = Policy.of(settings)
    (entry,) = policy.list(source, settings)
    assert policy.patient(name) == entry.patient_id


@pytest.mark.parametrize("identity", ["given", "pseudonym"])
@pytest.mark.parametrize("nobody", ["unknown", "Anonymous"])
def test_a_listed_patient_who_is_nobody_is_held(
    source: ObjectStore, settings: Settings, identity: str, nobody: str
) -> None:
    settings = _replacing(settings) if identity == "pseudonym" else settings
    _put(source, f"{nobody}/A/ct.nii.gz", "0/B/ct.nii.gz")
    held = {entry.ct: entry.problem for entry in Policy.of(settings).list(source, settings)}
    assert held.pop("0/B/ct.nii.gz") is None
    (problem,) = held.values()
    assert problem is not None and problem.reason == "no_patient_id"
