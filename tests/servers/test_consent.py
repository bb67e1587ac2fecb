"""Nothing is recorded of a patient who withdrew, whoever comes first; on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from threading import Event
from typing import Any

import pytest

from retroln.catalog import scans, withdrawals
from retroln.catalog.catalog import Catalog
from retroln.catalog.models import Withdrawal
from retroln.catalog.records import LandmarkReviewDraft, ScanDraft
from retroln.catalog.states import ScanState
from retroln.errors import WithdrawnError
from tests.servers.test_catalog import LANDMARKS, NODE, ROI
from tests.servers.test_catalog import CropDraft as Crop

DRAFT = ScanDraft(
    case_id="c1",
    patient_id="P1",
    source_uri={"ct": "P1/c1/ct.nii.gz"},
    source_fingerprint="f",
    source_sha256="a" * 64,
    ct_key="scans/c1/ct.nii.gz",
)
CROP = Crop(ct_key="k", ct_sha256="a", mask_key=None, mask_sha256=None, roi_key="r")
WAITED_S = 0.5
"""So long one transaction is seen to wait for another."""


def withdraw(catalog: Catalog, patient_id: str = "P1") -> None:
    catalog.begin_withdrawal(patient_id, "letter", "Dr A")


class TestAfterTheWithdrawal:
    @pytest.mark.parametrize("state", [ScanState.INGESTED, ScanState.QUARANTINED])
    def test_no_scan_is_added(self, catalog: Catalog, state: ScanState) -> None:
        withdraw(catalog)
        reason = "not_ct" if state is ScanState.QUARANTINED else None
        with pytest.raises(WithdrawnError, match="c1 took back consent"):
            catalog.add_scan(replace(DRAFT, state=state, reason=reason), None)
        assert catalog.current_scan("c1") is None
        assert catalog.add_scan(replace(DRAFT, patient_id="P2"), None).revision == 1

    def test_that_a_delivery_was_refused_is_recorded(self, catalog: Catalog) -> None:
        withdraw(catalog)
        held = replace(DRAFT, state=ScanState.QUARANTINED, reason="withdrawn", ct_key=None)
        assert catalog.add_scan(held, None).state is ScanState.QUARANTINED

    def test_no_intake_begins(self, catalog: Catalog) -> None:
        withdraw(catalog)
        with pytest.raises(WithdrawnError):
            catalog.begin_intake("c1", "P1", "a" * 64)
        assert catalog.intakes_of("P1") == []

    @pytest.mark.parametrize(
        "record",
        [
            lambda catalog, scan: catalog.record_prepared(scan, LANDMARKS, ROI, CROP, None),
            lambda catalog, scan: catalog.hold_landmarks(scan, "l2_unresolved", "d", LANDMARKS, None),
            lambda catalog, scan: catalog.quarantine(scan, "not_ct", "d", None),
            lambda catalog, scan: catalog.fail(scan, "OSError", "d", None),
            lambda catalog, scan: catalog.record_prediction(
                scan, model_name="m", version=1, label_key="k", page_key=None, nodes=[NODE], run_id=None
            ),
            lambda catalog, scan: catalog.review_landmarks(
                LandmarkReviewDraft(scan_id=scan, action="accept", reviewer="r", comment="c")
            ),
        ],
        ids=["prepared", "held", "quarantine", "fail", "prediction", "review"],
    )
    def test_nothing_is_recorded_of_a_scan_that_came_after_it(
        self, catalog: Catalog, record: Callable[[Catalog, int], None]
    ) -> None:
        """An earlier release could record such a scan; here its patient withdraws without a look at it."""
        scan = catalog.add_scan(DRAFT, None)
        with catalog.database.writing() as session:
            session.add(Withdrawal(patient_id="P1", reason="letter", by="Dr A"))
        with pytest.raises(WithdrawnError, match="c1 took back consent"):
            record(catalog, scan.scan_id)
        assert catalog.scan(scan.scan_id).state is ScanState.INGESTED

    def test_a_withdrawn_scan_keeps_no_fingerprint(self, catalog: Catalog) -> None:
        scan = catalog.add_scan(DRAFT, None)
        withdraw(catalog)
        catalog.empty_withdrawn("P1")
        catalog.touch_fingerprint(scan.scan_id, "new")
        assert catalog.scan(scan.scan_id).source_fingerprint == ""


class Pause:
    """A function that stops in the middle of a transaction until it is let go on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.reached, self.go_on = function, Event(), Event()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.reached.set()
        assert self.go_on.wait(60)
        return self.function(*arguments, **named)


def waits(pause: Pause, second: Callable[[], Any], first: Callable[[], Any]) -> Future[Any]:
    """The second of two transactions, which must wait for the first one to end."""
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(first)
        assert pause.reached.wait(60)
        other = threads.submit(second)
        with suppress(TimeoutError):
            other.result(WAITED_S)
        waited = not other.done()
        pause.go_on.set()
        one.result(60)
    assert waited
    return other


class TestAtTheSameMoment:
    def test_a_scan_that_is_being_added_is_taken_by_the_withdrawal(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pause = Pause(scans.note)
        monkeypatch.setattr(scans, "note", pause)
        waits(pause, lambda: withdraw(catalog), lambda: catalog.add_scan(DRAFT, None)).result()
        scan = catalog.current_scan("c1")
        assert scan is not None
        assert scan.state is ScanState.WITHDRAWN

    @pytest.mark.parametrize(
        "record",
        [
            lambda catalog: catalog.add_scan(DRAFT, None),
            lambda catalog: catalog.begin_intake("c1", "P1", "a" * 64),
        ],
        ids=["scan", "intake"],
    )
    def test_what_comes_while_a_withdrawal_begins_is_refused(
        self, catalog: Catalog, record: Callable[[Catalog], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pause = Pause(withdrawals._scans)
        monkeypatch.setattr(withdrawals, "_scans", pause)
        second = waits(pause, lambda: record(catalog), lambda: withdraw(catalog))
        with pytest.raises(WithdrawnError):
            second.result()
        assert catalog.current_scan("c1") is None
        assert catalog.intakes_of("P1") == []

    @pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
    def test_patients_and_scans_of_one_patient_do_not_wait_for_each_other(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pause = Pause(scans.note)
        with monkeypatch.context() as patch, ThreadPoolExecutor(1) as threads:
            patch.setattr(scans, "note", pause)
            one = threads.submit(catalog.add_scan, DRAFT, None)
            assert pause.reached.wait(60)
            patch.undo()
            withdraw(catalog, "P2")
            catalog.begin_intake("c2", "P1", "b" * 64)
            pause.go_on.set()
            assert one.result(60).case_id == "c1"
