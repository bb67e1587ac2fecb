"""The way of the data without an orchestrator, for tests that start where it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from retroln.catalog.accounting import Accounting, CaseOutcome
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.imaging.volume import Volume
from retroln.settings import Settings
from retroln.steps import infer, ingest, prepare
from retroln.steps.runs import Run


def embedded(folder: Path, **changes: Any) -> Settings:
    """A platform of its own in a folder: file stores, SQLite, an MLflow without a server."""
    places: dict[str, Any] = {
        "source_uri": f"file://{folder}/source",
        "store_uri": f"file://{folder}/store",
        "catalog_url": f"sqlite:///{folder}/catalog.db",
        "mlflow_uri": f"sqlite:///{folder}/mlflow.db",
        "mlflow_artifacts": str(folder / "mlartifacts"),
        "work_dir": folder / "work",
        "processes": 1,
    }
    return Settings(**(places | changes))


def write_case(
    folder: Path,
    phantom: Phantom,
    parts: tuple[str, ...] = ("ct", "vertebrae", "mask"),
    *,
    own: bool = True,
) -> None:
    """A phantom's files as a hospital delivers a case, in the folder `<patient>/<case>`.

    Args:
        own: give the patient a CT of his own, by noise of 1 HU; without it all who share a phantom share one.
    """
    ct = own_ct(phantom.ct, folder.parent.name) if own else phantom.ct
    volumes = {"ct": ct, "vertebrae": phantom.vertebrae, "mask": phantom.nodes}
    for name in parts:
        nifti.write_source(folder / f"{name}.nii.gz", volumes[name])


def own_ct(ct: Volume, patient_id: str) -> Volume:
    """The CT with noise of 1 HU, the same for the same patient."""
    noise = np.random.default_rng(crc32(patient_id.encode(errors="surrogateescape")))
    return ct.with_array(ct.array + noise.integers(-1, 2, ct.array.shape, dtype=np.int16))


def ingest_all(settings: Settings) -> dict[str, CaseOutcome]:
    """Ingest every case of the source; the sum must balance."""
    run = Run.begin(settings, "ingest", {})
    found = ingest.ingest(settings, run_id=run.run_id)
    assert run.finish(found).n_in == len(found)
    return {outcome.case_id: outcome for outcome in found}


def ingest_and_prepare(settings: Settings) -> tuple[Accounting, Accounting]:
    """Both steps over everything; their accountings."""
    run = Run.begin(settings, "ingest", {})
    ingested = run.finish(ingest.ingest(settings, run_id=run.run_id))
    run = Run.begin(settings, "prepare", {})
    backlog = prepare.backlog(settings)
    prepare.prepare(settings, backlog.left, run_id=run.run_id, owner="test")
    return ingested, run.settle(backlog)[0]


def infer_all(settings: Settings) -> Accounting:
    """The champion over everything that it has not seen."""
    model = infer.fetch(settings, infer.find_champion(settings))
    run = Run.begin(settings, "infer", {})
    backlog = infer.backlog(settings, model)
    infer.infer(settings, model, backlog.left, run_id=run.run_id, owner="test")
    return run.settle(backlog)[0]
