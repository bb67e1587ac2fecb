"""Patients never stand on both sides, and the same input always gives the same split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retroln.errors import UserError
from retroln.nnunet import splits

patient_sets = st.sets(st.text("abc123", min_size=1, max_size=4), max_size=30)


def test_test_set_has_the_quota_and_does_not_depend_on_order() -> None:
    patients = [f"p{n}" for n in range(20)]
    chosen = splits.assign_test(patients, 0.2, 600, frozenset(), frozenset())
    assert len(chosen) == 4
    assert chosen == splits.assign_test(reversed(patients), 0.2, 600, frozenset(), frozenset())
    assert chosen != splits.assign_test(patients, 0.2, 601, frozenset(), frozenset())


def test_locked_patients_stay_and_new_ones_only_fill_up() -> None:
    first = splits.assign_test([f"p{n}" for n in range(20)], 0.2, 600, frozenset(), frozenset())
    trained = {f"p{n}" for n in range(20)} - first
    second = splits.assign_test([f"p{n}" for n in range(40)], 0.2, 600, first, trained)
    assert first < second
    assert len(second) == 8
    assert not second & trained


@given(patient_sets, patient_sets, patient_sets, st.floats(0.01, 0.99))
def test_no_trained_patient_is_ever_tested(
    patients: set[str], locked: set[str], trained: set[str], fraction: float
) -> None:
    trained -= locked
    chosen = splits.assign_test(patients, fraction, 1, locked, trained)
    assert locked <= chosen <= locked | patients
    assert not chosen & trained


def test_locked_patient_that_was_trained_on_is_a_leak() -> None:
    with pytest.raises(splits.PatientLeakError, match="p1"):
        splits.assign_test(["p1", "p2"], 0.5, 600, frozenset({"p1"}), frozenset({"p1"}))


@given(
    st.dictionaries(st.text("xyz0", min_size=1, max_size=6), st.sampled_from("ABCDEFGH")), st.integers(2, 4)
)
def test_folds_keep_patients_together_and_cover_all_cases(patients: dict[str, str], n: int) -> None:
    if len(set(patients.values())) < n:
        with pytest.raises(UserError, match="too few patients"):
            splits.folds(patients, n, 600)
        return
    fold_of = splits.folds(patients, n, 600)
    assert fold_of.keys() == patients.keys()
    assert set(fold_of.values()) == set(range(n))
    assert len({(patients[case], fold) for case, fold in fold_of.items()}) == len(set(patients.values()))


def test_folds_are_balanced_by_cases() -> None:
    patients = {f"a{n}": "A" for n in range(6)} | {f"p{n}": f"P{n}" for n in range(6)}
    counts = Counter(splits.folds(patients, 2, 600).values())
    assert counts == {0: 6, 1: 6}


def test_written_splits_train_on_all_other_folds(tmp_path: Path) -> None:
    file = splits.write_splits(tmp_path, {"a": 0, "b": 1, "c": 2, "d": 0})
    assert json.loads(file.read_text()) == [
        {"train": ["b", "c"], "val": ["a", "d"]},
        {"train": ["a", "c", "d"], "val": ["b"]},
        {"train": ["a", "b", "d"], "val": ["c"]},
    ]


def test_patient_in_two_folds_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(splits.PatientLeakError, match="P"):
        splits.write_splits(tmp_path, {"a": 0, "b": 1}, {"a": "P", "b": "P"})
    assert list(tmp_path.iterdir()) == []
