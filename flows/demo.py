"""The whole way on one machine: phantom CT in a folder to a promoted model, measured nodes and pages.

Run `python -m flows.demo`; `--real DIR` sends real CT through ingest, prepare and infer with the
model that the demo trained on phantoms. What that finds in a patient means nothing clinically.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from retroln.catalog.accounting import Accounting, CaseOutcome
from retroln.errors import UserError
from retroln.files import naming_disk_refusals, write_json
from retroln.machine import share_threads
from retroln.nnunet.arithmetic import Machine
from retroln.report.terminal import figure_table, stage_table
from retroln.settings import Settings, TrainSpec
from retroln.steps.phantom_cohort import CohortSpec, write_cohort

FOLDER = Path("var/demo")
STAND_IN = "trained on synthetic phantoms: what it finds in a patient means nothing clinically"
_SHOWN = ("cases", "nodes", "sensitivity_ge10mm", "fp_per_volume", "dice_mean")
Stages = dict[str, Accounting]


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and say in one line what a person can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.demo", description=__doc__)
    parser.add_argument(
        "--real", type=Path, metavar="DIR", help="folder with a cases.csv, or the file itself"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier demo left")
    options = parser.parse_args(arguments)
    if options.fresh and not options.real:
        shutil.rmtree(FOLDER, ignore_errors=True)
    share_threads(1)
    _keep_to_this_machine()
    try:
        with naming_disk_refusals():
            return run_real(options.real) if options.real else run_demo()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def run_demo() -> int:
    """Cohort, five flows, a second pass that does nothing, and the summary."""
    begun = time.monotonic()
    settings, spec = demo_settings(), demo_spec()
    with _progress("phantom cohort (synthetic, no patient)", None):
        write_cohort(CohortSpec(), settings)
    stages, candidate = _all_stages(settings, spec)
    rerun_begun = time.monotonic()
    rerun, _ = _all_stages(settings, spec)
    rerun_wall_s = time.monotonic() - rerun_begun
    figures = _figures(settings, candidate)
    document = {
        "stages": {name: accounting.to_dict() for name, accounting in stages.items()},
        "model": {"name": settings.model_name, "version": candidate.version, "alias": "champion"},
        "test": figures["network"],
        "baseline": figures["threshold and size"],
        "paste_back_exact": _paste_back_exact(settings),
        "rerun": {"wall_s": round(rerun_wall_s, 1), "done": sum(a.done for a in rerun.values())},
        "wall_s": round(time.monotonic() - begun, 1),
        "machine": asdict(Machine.here(settings.arithmetic)),
    }
    write_json(FOLDER / "summary.json", document)
    _show_demo(stages, rerun, figures, document)
    return 1 if any(accounting.failed for accounting in stages.values()) else 0


def run_real(place: Path) -> int:
    """Real CT through ingest, prepare and infer; landmarks come from the listed label maps."""
    from flows.infer import infer
    from flows.ingest import ingest
    from flows.prepare import prepare
    from retroln.steps.cases_table import CASES_FILE
    from retroln.steps.cohort import stage_local

    cases_csv = place if place.is_file() else place / CASES_FILE
    if not cases_csv.exists():
        fix = "write one with the columns case_id,patient_id,ct,vertebrae,label_ids,mask"
        raise UserError("no such file", file=cases_csv, fix=fix)
    stage_local(cases_csv, FOLDER / "real-source")
    settings = demo_settings("real-source")
    stages = {name: _run(name, run, settings) for name, run in _named(ingest, prepare, infer)}
    pages = _page_paths(settings, [entry.case_id for entry in _entries(settings)])
    document = {
        "stages": {name: accounting.to_dict() for name, accounting in stages.items()},
        "pages": {case: str(page) for case, page in pages.items()},
        "paste_back_exact": _paste_back_exact(settings),
        "notice": STAND_IN,
    }
    write_json(FOLDER / "real-summary.json", document)
    console = Console()
    console.print(stage_table(stages, "Real CT beside the phantoms"))
    console.print(f"The model was {STAND_IN}.")
    for case, page in pages.items():
        console.print(f"{case}: {page}", soft_wrap=True)
    return 1 if any(accounting.failed for accounting in stages.values()) else 0


def demo_settings(source: str = "source") -> Settings:
    """Everything the demo writes lies under `var/demo`."""
    return Settings(
        source_uri=f"file://{FOLDER / source}",
        store_uri=f"file://{FOLDER / 'store'}",
        catalog_url=f"sqlite:///{FOLDER / 'catalog.db'}",
        mlflow_uri=f"sqlite:///{FOLDER / 'mlflow.db'}",
        mlflow_artifacts=str(FOLDER / "mlartifacts"),
        work_dir=FOLDER / "work",
        model_name="retroln-demo",
        experiment="retroln-demo",
    )


def demo_spec() -> TrainSpec:
    """A budget that two CPU cores finish in minutes.

    From what probability and volume on something is a finding was chosen, as all of this was, on 60 phantom
    patients of another cohort, which are neither trained on nor tested here (docs/reference/network.md).
    """
    return TrainSpec(
        profile="demo",
        epochs=25,
        iterations=60,
        validation_iterations=4,
        n_folds=20,
        test_fraction=0.12,
        device="cpu",
        min_probability=0.2,
        min_finding_mm3=220.0,  # a sphere 7.5 mm across
        stand_in=STAND_IN,
    )


def _all_stages(settings: Settings, spec: TrainSpec) -> tuple[Stages, Any]:
    """ingest, prepare, train, promote, infer: the flows that deployments run."""
    from flows.infer import infer
    from flows.ingest import ingest
    from flows.prepare import prepare
    from flows.train import train

    stages = {name: _run(name, run, settings) for name, run in _named(ingest, prepare)}
    with _progress("train", spec.epochs):
        state: Any = _within(settings, train, spec)
    candidate = state.result()
    roles = len(candidate.dataset.members)
    stages["train"] = Accounting(roles, *((0, roles) if candidate.skipped else (roles, 0)), 0, 0)
    stages["promote"] = _promote(settings, candidate.version)
    stages["infer"] = _run("infer", infer, settings)
    return stages, candidate


def _promote(settings: Settings, version: int) -> Accounting:
    """The demo approves its own candidate after the gates, and the audit says so."""
    from flows.promote import Review, promote
    from retroln.steps.workspace import open_workspace

    if open_workspace(settings).registry.get_alias("champion") == version:
        return Accounting(1, 0, 1, 0, 0)
    comment = "approved by the demo itself after the gates, not by a person"
    with _progress("promote", None):
        _within(settings, promote, version, Review(approve=True, reviewer="demo", comment=comment)).result()
    return Accounting(1, 1, 0, 0, 0)


def _within(settings: Settings, flow: Any, *arguments: Any) -> Any:
    """The final state of a flow run here with these settings."""
    from tasks.policy import using

    with using(settings):
        return flow(*arguments, return_state=True)


def _named(*flows: Any) -> list[tuple[str, Any]]:
    return [(flow.name, flow) for flow in flows]


def _run(name: str, flow: Any, settings: Settings) -> Accounting:
    with _progress(name, None):
        state = _within(settings, flow)
    found = state.result(raise_on_failure=False)
    accounting = getattr(found, "accounting", found)
    if not isinstance(accounting, Accounting):
        raise found
    return accounting


def _figures(settings: Settings, candidate: Any) -> dict[str, dict[str, Any]]:
    """Test figures of the network and of the plain detector, on the same locked patients."""
    import json

    from retroln.steps import evaluate, promote
    from retroln.steps.workspace import open_workspace

    tags = open_workspace(settings).registry.tags(candidate.version)
    plain = evaluate.figures(evaluate.evaluate_baseline(settings, candidate.dataset))
    return {"network": json.loads(tags[promote.SUMMARY_TAG]), "threshold and size": plain}


def _entries(settings: Settings) -> Any:
    from retroln.steps.ingest import list_entries

    return list_entries(settings)


def _page_paths(settings: Settings, cases: list[str]) -> dict[str, Path]:
    """The page of each case's current results."""
    from retroln.steps.workspace import open_workspace

    catalog = open_workspace(settings).catalog
    pages = {}
    for scan in filter(None, map(catalog.current_scan, cases)):
        prediction = catalog.current_prediction(scan.scan_id)
        if prediction and prediction.page_key:
            pages[scan.case_id] = FOLDER / "store" / prediction.page_key
    return pages


def _paste_back_exact(settings: Settings) -> bool:
    """Put every stored CT crop back on its delivered grid and compare voxel by voxel, bit by bit."""
    from retroln.steps.audit import crops_are_exact

    return crops_are_exact(settings)


def _show_demo(
    stages: Stages, rerun: Stages, figures: dict[str, dict[str, Any]], document: dict[str, Any]
) -> None:
    console = Console()
    console.print(stage_table(stages, "First pass"))
    console.print(stage_table(rerun, "Second pass over unchanged input"))
    shown = {name: {key: values.get(key) for key in _SHOWN} for name, values in figures.items()}
    console.print(figure_table(shown, "Locked phantom test patients (synthetic)"))
    model = document["model"]
    console.print(f"champion: {model['name']} version {model['version']} ({STAND_IN})")
    console.print(f"case pages: {FOLDER}/store/predictions/*/*/*/page.html", soft_wrap=True)
    console.print(f"summary: {FOLDER}/summary.json", soft_wrap=True)
    console.print(f"{document['wall_s']:.0f} s on {Machine(**document['machine'])}", soft_wrap=True)


@contextmanager
def _progress(title: str, epochs: int | None) -> Iterator[None]:
    """A rich bar that counts cases or epochs as the tasks report them."""
    from tasks.policy import listeners

    columns = TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bars:
        bar = bars.add_task(title, total=epochs, note="")

        def listen(event: Any) -> None:
            if isinstance(event, CaseOutcome):
                bars.advance(bar)
                if event.detail:
                    bars.console.print(event.line, soft_wrap=True)
            else:
                bars.update(bar, advance=1, note=f"loss {event.get('train_loss', float('nan')):.3f}")

        listeners.append(listen)
        try:
            yield
        finally:
            listeners.remove(listen)
            done = bars.tasks[bar].completed
            bars.update(bar, total=done or 1, completed=done or 1)


def _keep_to_this_machine() -> None:
    """An in-process Prefect of the demo's own, telemetry off, its log silent."""
    own = {
        "PREFECT_HOME": str((FOLDER / "prefect").resolve()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # cases and errors are told by the demo itself
        "DO_NOT_TRACK": "1",
        "RETROLN_ENV_FILE": os.devnull,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    Path(own["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.update(own)
    os.environ.pop("PREFECT_API_URL", None)


if __name__ == "__main__":
    sys.exit(main())
