"""Patients withdrawn after a real training: their names are nowhere, and the training cannot go on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("nnunetv2")

from retroln.catalog.accounting import Accounting
from retroln.errors import ConflictError
from retroln.imaging.phantom import PhantomSpec, make_phantom
from retroln.settings import GateSpec, Settings, TrainSpec
from retroln.steps import promote, training, withdraw
from retroln.steps.fold_store import Ticket
from retroln.steps.workspace import open_workspace
from tests.way import embedded, infer_all, ingest_and_prepare, write_case

SPEC = TrainSpec(
    profile="demo",
    n_folds=2,
    epochs=1,
    iterations=2,
    validation_iterations=1,
    device="cpu",
    test_fraction=0.34,
    stand_in="trained for two steps on phantoms",
)
LENIENT = GateSpec(min_test_patients=1, min_sensitivity_ge10mm=0.0, max_fp_per_volume=1e9)
WORDS = {"reason": "letter", "by": "Dr A"}
PATIENTS = 6


@dataclass(frozen=True)
class Trained:
    """A platform with a champion, and the ticket of another training on the same dataset version."""

    settings: Settings
    folder: Path
    candidate: training.Candidate
    ticket: Ticket

    def patients(self, role: str) -> list[str]:
        return [member.patient_id for member in self.candidate.dataset.members if member.role == role]

    def naming(self, patient_id: str) -> list[Path]:
        """Files, outside source and catalog, whose path or bytes name the patient or the patient's case."""
        names = (patient_id, patient_id.replace("WPAT", "WCASE"))
        places = [self.folder / place for place in ("store", "mlartifacts", "work", "mlflow.db")]
        files = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
        return [
            path
            for path in files
            if any(name in str(path) or name.encode() in path.read_bytes() for name in names)
        ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Six phantom patients, of whom two are locked away for testing."""
    folder = tmp_path_factory.mktemp("withdrawn")
    settings = embedded(folder, gates=LENIENT)
    for number in range(PATIENTS):
        made = make_phantom(PhantomSpec(seed=50 + number, spacing_mm=(5.0, 5.0, 6.0), orientation="RAS"))
        case = folder / "source" / f"WPAT{number}" / f"WCASE{number}"
        write_case(case, made)
    ingest_and_prepare(settings)
    candidate = training.train_candidate(settings, SPEC)
    promote.promote(settings, candidate.version, reviewer="Dr B", comment="to test the way")
    assert infer_all(settings) == Accounting(PATIENTS, 2, 4, 0, 0)
    ticket = training.begin(settings, SPEC.model_copy(update={"epochs": 2}))
    assert isinstance(ticket, Ticket)
    return Trained(settings, folder, candidate, ticket)


def test_withdrawn_patients_are_named_nowhere_and_nothing_trains_on_them(trained: Trained) -> None:
    settings, catalog = trained.settings, open_workspace(trained.settings).catalog
    gone = [trained.patients("test")[0], trained.patients("train")[0]]
    stays = trained.patients("train")[1]
    assert all(trained.naming(patient_id) for patient_id in gone)
    others = {path for path in trained.naming(stays) if {"scans", "store"} <= set(path.parts)}
    assert others
    for patient_id in gone:
        found = withdraw.withdraw(settings, patient_id, **WORDS)
        assert [version.is_champion for version in found.versions] == [True]
    assert [trained.naming(patient_id) for patient_id in gone] == [[], []]
    assert others <= set(trained.naming(stays))

    with pytest.raises(ConflictError, match="2 of its patients withdrew"):
        catalog.require_trainable(trained.ticket.dataset_version)
    parts = (partial(training.train_fold, fold=0), training.score, training.register)
    for part in parts:
        with pytest.raises(ConflictError, match="tombstoned"):
            part(settings, trained.ticket)
    assert trained.ticket.mlflow_run_id in withdraw.withdraw(settings, gone[0], **WORDS).under_way
    training.abandon(settings, trained.ticket, "its patients withdrew")
    assert withdraw.withdraw(settings, gone[0], **WORDS).under_way == ()

    assert ingest_and_prepare(settings) == (Accounting(6, 0, 4, 2, 0), Accounting(4, 0, 4, 0, 0))
    assert infer_all(settings) == Accounting(4, 0, 4, 0, 0)
    again = training.begin(settings, SPEC)
    assert isinstance(again, Ticket)
    assert not {m.patient_id for m in catalog.dataset(again.dataset_version).members} & set(gone)
