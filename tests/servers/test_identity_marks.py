"""On either database, of two who bring one image at once under two patients one is held."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from retroln.catalog.catalog import Catalog
from retroln.catalog.likeness import AlikeError
from retroln.catalog.records import Mark, ScanDraft
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError, WithdrawnError

IMAGE = frozenset({Mark("slice", "1"), Mark("slice", "2"), Mark("person", "x")})


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    catalog = Catalog.open(catalog_url)
    yield catalog
    catalog.close()


def _draft(name: str, marks: frozenset[Mark] = IMAGE) -> ScanDraft:
    return ScanDraft(
        case_id=name, patient_id=f"P{name}", source_uri={}, source_fingerprint="f", ct_key="k", marks=marks
    )


def _add(url: str, name: str, start: Barrier) -> None:
    catalog = Catalog.open(url)
    start.wait()
    try:
        catalog.add_scan(_draft(name), None)
    except AlikeError:
        pass
    finally:
        catalog.close()


def test_of_many_at_once_one_is_recorded(catalog_url: str, catalog: Catalog, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    workers = [context.Process(target=_add, args=(catalog_url, str(number), start)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(catalog.scans()) == 1


def test_the_most_alike_is_named_and_who_is_linked(catalog: Catalog) -> None:
    catalog.add_scan(_draft("A", frozenset({Mark("person", "x")})), None)
    catalog.add_scan(_draft("B", frozenset({Mark("slice", "2"), Mark("study", "y")})), None)
    found = catalog.alike(IMAGE, "PC")
    assert found is not None
    assert (found.case_id, found.patient_id, found.same_image, found.shared) == (
        "B",
        "PB",
        True,
        {"slice": 1},
    )
    with pytest.raises(AlikeError, match="case C shows the same image as case B"):
        catalog.add_scan(_draft("C"), None)
    assert catalog.alike({Mark("study", "x")}, "PC") is None  # the same letters of another kind
    catalog.add_scan(_draft("D", frozenset({Mark("slice", "3")})), None)
    with catalog.database.engine.begin() as connection:
        connection.execute(text("UPDATE scans SET identified = false"))
    assert catalog.count_unmarked() == 3
    both = [Mark("person", "x"), Mark("study", "y")]
    assert catalog.mark_scan(3, both, lambda found: ("same_person", f"as {found.case_id}")) is not None
    assert catalog.scan(3).detail == "as A"
    assert [(one.patient_id, one.told_apart) for one in catalog.linked("PA")] == [("PD", False)]
    catalog.rule_different(["A", "D"], "Dr A", "two people")
    assert [(one.patient_id, one.told_apart) for one in catalog.linked("PA")] == [("PD", True)]
    assert [(one.patient_id, one.told_apart) for one in catalog.linked("PB")] == [("PD", False)]


def test_marks_outlive_a_withdrawal(catalog: Catalog) -> None:
    catalog.add_scan(_draft("A"), None)
    catalog.begin_withdrawal("PA", "asked", "Dr A")
    catalog.empty_withdrawn("PA")
    found = catalog.alike(IMAGE, "PB")
    assert found is not None and found.withdrawn
    with pytest.raises(WithdrawnError):
        catalog.add_scan(_draft("A"), None)


def test_a_retired_case_is_given_up_emptied_and_forgotten(catalog: Catalog) -> None:
    scan = catalog.add_scan(dataclasses.replace(_draft("A"), source_sha256="s"), None)
    with pytest.raises(ConflictError, match="scan 1 of case A is in use"):
        catalog.empty_revision(scan.scan_id, "retired")
    held = catalog.retire(scan.scan_id, "by Dr A")
    assert (held.state, held.reason, held.revision) == (ScanState.QUARANTINED, "retired", 2)
    assert [one.scan_id for one in catalog.given_up("A", "PA")] == [1]
    assert (catalog.given_up("A", "PB"), catalog.keys_in_use("A")) == ([], frozenset())
    catalog.empty_revision(1, "retired")
    assert catalog.given_up("A", "PA") == []
    catalog.begin_withdrawal("PA", "asked", "Dr A")
    assert catalog.add_scan(_draft("B"), None).patient_id == "PB"


@pytest.mark.parametrize(
    "statement", ["UPDATE identity_rulings SET reviewer = 'me'", "DELETE FROM identity_rulings"]
)
def test_rulings_are_append_only(catalog: Catalog, statement: str) -> None:
    for name in ("A", "B"):
        catalog.add_scan(_draft(name, frozenset()), None)
    catalog.rule_different(["A", "B"], "Dr A", "two people")
    with (
        pytest.raises(DBAPIError, match="identity_rulings is append-only"),
        catalog.database.engine.begin() as connection,
    ):
        connection.execute(text(statement))
