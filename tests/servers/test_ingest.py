"""Ingest over real stores and databases: the comparison at once, and several who ingest one source."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import event

from infra.servers import S3Server
from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome
from retroln.imaging.phantom import Phantom
from retroln.settings import Settings
from retroln.steps import arrivals, ingest
from retroln.steps.identity import Policy
from retroln.steps.runs import Run
from retroln.steps.workspace import open_workspace
from tests.way import embedded, ingest_all, write_case

_number = count()
CASES = [f"C{number}" for number in range(4)]


@pytest.fixture
def shared(settings: Settings, catalog_url: str) -> Iterator[Settings]:
    """Settings of a platform on either database."""
    chosen = settings.model_copy(update={"catalog_url": catalog_url})
    yield chosen
    open_workspace(chosen).catalog.close()


def _ingest_beside(settings: Settings, run_id: int, start: Barrier) -> None:
    entries = ingest.list_entries(settings)
    start.wait()
    ingest.ingest(settings, entries, run_id=run_id)


def test_of_two_who_ingest_a_case_at_once_one_does_it_and_none_fails(
    shared: Settings, tmp_path: Path, phantom: Phantom
) -> None:
    for case in CASES:
        write_case(tmp_path / "source" / f"P-{case}" / case, phantom)
    catalog, context = open_workspace(shared).catalog, multiprocessing.get_context("spawn")
    runs, start = [Run.begin(shared, "ingest", {}) for _ in range(2)], context.Barrier(2)
    workers = [context.Process(target=_ingest_beside, args=(shared, run.run_id, start)) for run in runs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    sums = [run.settle_cases(CASES)[0] for run in runs]
    assert sums[0] + sums[1] == Accounting(8, 4, 4, 0, 0)
    done = Counter(one.case_id for run in runs for one in catalog.outcomes_of(run.run_id, Outcome.DONE))
    assert done == dict.fromkeys(CASES, 1)
    assert {len(catalog.case_history(case).events) for case in CASES} == {1}
    assert catalog.claims() == []


def test_a_skip_of_a_retry_leaves_what_is_noted_and_thousands_are_noted_at_once(shared: Settings) -> None:
    catalog = open_workspace(shared).catalog
    run, statements = Run.begin(shared, "ingest", {}), []
    done = [CaseOutcome(f"C{number:05}", Outcome.DONE) for number in range(3)]
    skipped = [CaseOutcome(f"C{number:05}", Outcome.SKIPPED) for number in range(10_000)]
    intake = ingest.Intake(shared, run.run_id, "me")
    intake.note(*done)
    event.listen(catalog.database.engine, "before_cursor_execute", lambda *about: statements.append(about[2]))
    intake.note(*skipped)
    assert len([one for one in statements if one.startswith("INSERT")]) == 1
    accounting, shown = run.settle_cases(one.case_id for one in skipped)
    assert (accounting, shown) == (Accounting(10_000, 3, 9_997, 0, 0), [])
    assert catalog.outcomes_of(run.run_id, Outcome.DONE) == done


@pytest.fixture(params=["file", "s3"])
def delivered(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Cases of every layout in a folder or in a bucket."""
    keys = [
        *("P1/NIFTI/ct.nii.gz", "P1/NIFTI/mask.nii", "P1/NIFTI/vertebrae.nii.gz"),
        *("P1/LEVELS/ct.nii", *(f"P1/LEVELS/vertebrae/vertebrae_L{level}.nii.gz" for level in (2, 1, 10))),
        *(f"P-1/DICOM/dicom/{name}" for name in ("10", "9", "a/2", "a/10", "a-b/1", "b", "a.c", "B/x/y")),
        *("P-1/ZIP/ct.zip", "P-1/ZIP/mask.dcm", "P.1/x/dicom/1.dcm", "P1-/DICOM-/dicom/1.dcm"),
        "P1/NOTHING/mask.nii.gz",
    ]
    if request.param == "file":
        for key in keys:
            (tmp_path / "source" / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / key).write_bytes(key.encode())
        return embedded(tmp_path)
    server: S3Server = request.getfixturevalue("s3_server")
    bucket = f"listed{next(_number)}"
    with closing(server.client()) as client:
        client.create_bucket(Bucket=bucket)
        for key in keys:
            client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    return embedded(
        tmp_path,
        source_uri=f"s3://{bucket}",
        s3_endpoint=server.endpoint,
        s3_access_key=server.access_key,
        s3_secret_key=server.secret_key,
    )


@pytest.mark.parametrize("identity", ["given", "pseudonym"])
def test_a_listing_gives_the_fingerprints_that_asking_for_each_object_gives(
    delivered: Settings, identity: str
) -> None:
    key = {"identity": identity, "pseudonym_key": "of these tests, thirty-two characters"}
    settings = Settings(**{**delivered.model_dump(), **key})
    store, policy = open_workspace(settings).source, Policy.of(settings)
    entries = ingest.list_entries(settings)
    listed, nothing = arrivals.Listed.of(store, entries), arrivals.Known({}, {}, ())
    assert len(entries) == 7
    for entry in entries:
        alone, at_once = (arrivals.Arrival.of(entry, nothing, one, policy) for one in (store, listed))
        assert at_once.fingerprint == alone.fingerprint
        assert at_once.parts.keys() == alone.parts.keys()
        assert str(at_once.problem) == str(alone.problem)
        assert bool(alone.problem) == (entry.keys["ct"].startswith("P1/NOTHING/"))


def test_what_was_ingested_from_there_is_known_by_the_listing(delivered: Settings) -> None:
    settings = delivered.model_copy(update={"patience_s": 0.0})
    first = ingest_all(settings)
    workspace, entries = open_workspace(settings), ingest.list_entries(settings)
    run_id = workspace.catalog.begin_run("ingest", {})
    assert arrivals.unchanged(workspace, Policy.of(settings), run_id, entries) == first
