"""Sweep: remove what came of withdrawn patients after their withdrawal was done.

A worker that outlived its lease, or died between storing and recording, may leave objects of a patient who
withdrew meanwhile, and a training that ended then may name the patient in MLflow. Nobody asks for these any
more, so reconcile looks for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache

from retroln.catalog.records import WithdrawalRecord
from retroln.errors import ConflictError, RefusedError, UnavailableError, UserError
from retroln.settings import Settings
from retroln.steps import withdraw
from retroln.steps.case_objects import SHORT, Ownership, cases_of, objects_below
from retroln.steps.holdings import objects_of_versions
from retroln.steps.workspace import Workspace, open_workspace

PATIENTS_PER_PASS = 20
_PASS_S = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swept:
    """What a pass found.

    Attributes:
        patients: withdrawn patients of whom something was there and is removed.
        objects: how many stored objects of theirs.
        in_hand: withdrawn patients of whom something is there that waits for a worker, and for a later pass.
        in_mlflow: how many model versions were marked and artifacts redacted.
        failures: what could not be finished, and why; later passes try again.
    """

    patients: int = 0
    objects: int = 0
    in_hand: int = 0
    in_mlflow: int = 0
    failures: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """In sentences; none when there was nothing. Patients are not named."""
        found = []
        if self.patients:
            found.append(
                f"{self.objects} objects that came of {self.patients} withdrawn patients after the withdrawal"
                " are removed"
            )
        if self.in_hand:
            found.append(f"a worker has scans of {self.in_hand} withdrawn patients in hand; they wait for it")
        if self.in_mlflow:
            found.append(
                f"{self.in_mlflow} model versions and artifacts in MLflow still told of withdrawn patients;"
                " they are put right"
            )
        return found + [f"not finished: {failure}" for failure in self.failures]

    def require_finished(self) -> None:
        """Raise `RefusedError` if something could not be finished."""
        if self.failures:
            raise RefusedError(
                "what came of withdrawn patients is not all removed",
                expected="every withdrawal finished",
                got="; ".join(self.failures),
                fix="mend what each says; the next pass tries again",
            )


def sweep(settings: Settings, now: datetime | None = None) -> Swept:
    """Look at some withdrawn patients, all in turn, and finish the withdrawal of those who left something.

    Of a patient it lists the prefixes of the patient's own cases alone: two per case, one per case and
    model version that was ever decided on, two per dataset version with the patient. MLflow it asks for the
    model versions and the runs of each such dataset version. What goes wrong with one stops no other.

    Args:
        now: decides whose turn it is.

    Raises:
        UnavailableError: a server is away; a later pass goes on.
    """
    catalog = open_workspace(settings).catalog
    turn = in_turn(catalog.withdrawals(), now or datetime.now(UTC))
    failures: list[str] = []
    found = _sweep_patients(settings, turn, failures)
    patients = [one.patient_id for one in turn]
    datasets = {used.version for patient in patients for used in catalog.datasets_of_patient(patient)}
    in_mlflow = 0
    for dataset in sorted(datasets):
        with _going_on(f"dataset version {dataset[:SHORT]}", failures):
            in_mlflow += withdraw.put_mlflow_right(settings, dataset)
    return replace(found, in_mlflow=in_mlflow, failures=tuple(failures))


def _sweep_patients(settings: Settings, turn: Sequence[WithdrawalRecord], failures: list[str]) -> Swept:
    workspace = open_workspace(settings)
    is_left = cache(lambda version: any(True for _ in objects_of_versions(workspace, [version])))
    patients = objects = in_hand = 0
    for one in turn:
        with _going_on(f"withdrawal {one.withdrawal_id}", failures):
            if not _holds_anything(workspace, one.patient_id, is_left):
                continue
            try:
                found = withdraw.finish(settings, one.patient_id, hand="sweep")
            except ConflictError:
                in_hand += 1
            else:
                patients, objects = patients + 1, objects + len(found.objects)
    return Swept(patients, objects, in_hand)


@contextmanager
def _going_on(what: str, failures: list[str]) -> Iterator[None]:
    """Tell an error of the block and go on; a server that is away is away for all."""
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        log.error("%s is not finished: %s", what, error, exc_info=not isinstance(error, UserError))
        failures.append(f"{what}: {type(error).__name__}: {error}")


def in_turn(withdrawals: Sequence[WithdrawalRecord], now: datetime) -> list[WithdrawalRecord]:
    """Those that a pass at `now` looks at: all, or where these are many the next so many of a round."""
    number = len(withdrawals)
    if number <= PATIENTS_PER_PASS:
        return [*withdrawals]
    first = int(now.timestamp()) // _PASS_S * PATIENTS_PER_PASS % number
    return [withdrawals[(first + step) % number] for step in range(PATIENTS_PER_PASS)]


def _holds_anything(workspace: Workspace, patient_id: str, is_left: Callable[[str], bool]) -> bool:
    """Whether rows name something stored of a withdrawn patient, or something is stored."""
    catalog = workspace.catalog
    if any(scan.ct_key for scan in catalog.scans_of_patient(patient_id)):
        return True
    cases = cases_of(catalog, patient_id)
    models = [f"{name}-v{version}" for name, version in catalog.models_decided_on()]
    prefixes = [f"{place}/{case}/" for case in cases for place in ("scans", "crops")]
    prefixes += [f"predictions/{model}/{case}/" for case in cases for model in models]
    own = objects_below(workspace, Ownership.of(catalog, patient_id, cases), prefixes)
    versions = dict.fromkeys(used.version for used in catalog.datasets_of_patient(patient_id))
    return any(True for _ in own) or any(map(is_left, versions))
