"""A cohort of phantom CTs in an object store, laid out as a hospital's would be: for demos and tests."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from retroln.errors import ConflictError
from retroln.imaging import nifti
from retroln.imaging.phantom import PhantomSpec, make_phantom
from retroln.imaging.phantom.spec import Phase
from retroln.machine import cores, share_threads
from retroln.settings import Settings
from retroln.storage.open import open_store

_ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "RPI", "ASL")
_PHASES: tuple[Phase, ...] = (
    "portal",
    "portal",
    "arterial",
    "portal",
    "native",
)  # as cancer staging is mostly done


@dataclass(frozen=True)
class CohortSpec:
    """How many phantom patients, how large their voxels, and one broken file to be quarantined."""

    patients: int = 200
    seed: int = 9200  # the nodes of these 200 lie inside the region, as training asks
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 3.0)
    node_free_every: int = 9
    broken: bool = True


def write_cohort(spec: CohortSpec, settings: Settings) -> None:
    """Write `<patient>/<case>/ct.nii.gz`, `vertebrae.nii.gz`, `mask.nii.gz` to the source, once."""
    processes, spawn = cores(), get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=share_threads, initargs=(processes,)) as pool:
        list(pool.map(partial(_write_patient, spec, settings), range(spec.patients)))
    if spec.broken:
        store = open_store(settings.source_uri, settings)
        whole = store.get_bytes("PHANTOM-000/P000-CT1/ct.nii.gz")
        with suppress(ConflictError):
            broken = "PHANTOM-BROKEN/PBROKEN-CT1/ct.nii.gz"
            store.put_bytes(whole[: len(whole) // 2], broken, if_absent=True)


def phantom_spec(spec: CohortSpec, number: int) -> PhantomSpec:
    """The phantom of patient `number`: phases and orientations take turns, some are node-free."""
    return PhantomSpec(
        seed=spec.seed + number,
        spacing_mm=spec.spacing_mm,
        orientation=next(islice(cycle(_ORIENTATIONS), number, None)),
        phase=next(islice(cycle(_PHASES), number, None)),
        node_free=number % spec.node_free_every == spec.node_free_every // 2,
        missing_levels=("L2",) if number == 3 else (),
    )


def _write_patient(spec: CohortSpec, settings: Settings, number: int) -> None:
    store = open_store(settings.source_uri, settings)
    base = f"PHANTOM-{number:03d}/P{number:03d}-CT1/"
    if any(info.key == base + "ct.nii.gz" for info in store.list(base)):
        return
    phantom = make_phantom(phantom_spec(spec, number))
    with TemporaryDirectory() as folder:
        for name, volume in (("mask", phantom.nodes), ("vertebrae", phantom.vertebrae), ("ct", phantom.ct)):
            path = Path(folder) / f"{name}.nii.gz"
            nifti.write_source(path, volume)
            store.put_file(path, f"{base}{name}.nii.gz")
