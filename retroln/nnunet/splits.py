"""Who is tested, who trains, and in which fold: always by patient, always reproducible."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from retroln.errors import UserError
from retroln.files import write_json


class PatientLeakError(UserError):
    """The same patient would be trained on and tested on."""

    exit_code = 6


def assign_test(
    patients: Iterable[str],
    fraction: float,
    seed: int,
    locked_test: AbstractSet[str],
    ever_trained: AbstractSet[str],
) -> frozenset[str]:
    """Patients locked away for testing.

    Locked patients stay locked, whoever else arrives. New ones fill the quota
    round(fraction * patients), at least one, in the order of sha256("seed:patient"), so that the
    choice depends on nothing but the patient and the seed. A patient ever trained on is never taken;
    the result may therefore be smaller than the quota.

    Raises:
        PatientLeakError: a locked patient has been trained on.
    """
    leaked = locked_test & ever_trained
    if leaked:
        raise _leak("patients of the locked test set have been trained on", leaked)
    present = frozenset(patients)
    quota = max(1, round(fraction * len(present))) if present else 0
    free = sorted(present - locked_test - ever_trained, key=lambda patient: _rank(seed, patient))
    missing = max(0, quota - len(present & locked_test))
    return frozenset(locked_test) | frozenset(free[:missing])


def folds(patients: Mapping[str, str], n: int, seed: int) -> dict[str, int]:
    """Fold (0..n-1) of every case; all cases of a patient share one.

    Patients with most cases come first, then by sha256("seed:patient"); each goes to the fold that
    holds the fewest cases.

    Args:
        patients: patient of each case id.

    Raises:
        UserError: fewer patients than folds.
    """
    cases = defaultdict(list)
    for case, patient in patients.items():
        cases[patient].append(case)
    if len(cases) < n:
        raise UserError(
            "too few patients for the folds",
            expected=f"at least {n} patients",
            got=str(len(cases)),
            fix="add labelled patients or lower n_folds",
        )
    load = [0] * n
    fold_of = {}
    for patient in sorted(cases, key=lambda patient: (-len(cases[patient]), _rank(seed, patient))):
        fold = load.index(min(load))
        load[fold] += len(cases[patient])
        fold_of.update(dict.fromkeys(cases[patient], fold))
    return fold_of


def write_splits(folder: Path, fold_of: Mapping[str, int], patients: Mapping[str, str] | None = None) -> Path:
    """Write nnU-Net's `splits_final.json`: for each fold the cases to train on and to validate with.

    Args:
        folder: the dataset's folder under nnU-Net's `preprocessed`.
        fold_of: fold of every training case.
        patients: patient of each case; when given, it is checked that no patient is in two folds.

    Raises:
        PatientLeakError: a patient's cases lie in different folds.
    """
    if patients is not None:
        pairs = {(patients[case], fold) for case, fold in fold_of.items()}
        counts = Counter(patient for patient, _ in pairs)
        torn = {patient for patient, n in counts.items() if n > 1}
        if torn:
            raise _leak("patients lie in more than one fold", torn)
    content = [_split(fold_of, fold) for fold in range(max(fold_of.values()) + 1)]
    target = folder / "splits_final.json"
    write_json(target, content)
    return target


def _split(fold_of: Mapping[str, int], fold: int) -> dict[str, list[str]]:
    return {
        "train": sorted(case for case, own in fold_of.items() if own != fold),
        "val": sorted(case for case, own in fold_of.items() if own == fold),
    }


def _rank(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()


def _leak(what: str, patients: Iterable[str]) -> PatientLeakError:
    listed = sorted(patients)
    shown = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
    return PatientLeakError(
        what,
        expected="no patient on both sides",
        got=shown,
        fix="look at the dataset's members in the catalog",
    )
