"""The catalog's promises, each kept by SQLite and by PostgreSQL."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import Select, text
from sqlalchemy.dialects import postgresql, sqlite

from retroln.catalog.accounting import Accounting
from retroln.catalog.catalog import Catalog
from retroln.catalog.predictions import to_infer
from retroln.catalog.records import (
    CropDraft,
    DatasetDraft,
    LandmarksDraft,
    MemberDraft,
    RoiDraft,
    ScanDraft,
    ScanRecord,
)
from retroln.catalog.scans import to_prepare
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError, NotFoundError

AFFINE = [[0.8, 0, 0, -100.5], [0, 0.8, 0, 3], [0, 0, 2.5, 7], [0, 0, 0, 1]]
LANDMARKS = LandmarksDraft(
    source="provided",
    label_ids="totalseg-v2",
    rung="l2",
    anchored=True,
    truncated=["T12"],
    findings=[],
    levels={"L2": {"volume_mm3": np.float32(3.5), "centroid_world_mm": np.array([1, 2, 3])}},
)
ROI = RoiDraft(
    start=(1, 2, 3),
    stop=(10, 20, 30),
    clamped_sides=["anterior"],
    containment=0.99,
    document={"rung": "l2", "box": {"start": [1, 2, 3]}},
)
NODE = {
    "label": 1,
    "volume_mm3": 500.5,
    "short_axis_mm": 9.9,
    "long_axis_mm": 14.0,
    "centroid_world_mm": (1.0, -2.0, 3.5),
    "recist": "normal",
    "stratum": "8-10",
    "station": None,
    "level": "L2",
    "an extra": "is left out",
}


def draft(case_id: str = "c1", patient_id: str = "p1", **changed: object) -> ScanDraft:
    whole = ScanDraft(
        case_id=case_id,
        patient_id=patient_id,
        source_uri={"ct": f"{patient_id}/{case_id}/ct.nii.gz"},
        source_fingerprint="etag-1",
        source_sha256="a" * 64,
        ct_key=f"scans/{case_id}/ct.nii.gz",
        mask_key=f"scans/{case_id}/mask.nii.gz",
        shape=(10, 20, 30),
        affine=AFFINE,
        source_shape=(30, 20, 10),
        source_affine=AFFINE,
        orientation="PIR",
    )
    return replace(whole, **changed)


def held(case_id: str = "c1") -> ScanDraft:
    """A case that ingest could not use: nothing of it is stored."""
    return ScanDraft(
        case_id=case_id,
        patient_id="p1",
        source_uri={},
        source_fingerprint="etag-1",
        state=ScanState.QUARANTINED,
        reason="truncated",
        detail="ct.nii.gz: truncated\x00; got: 10 bytes",
    )


def crop(case_id: str = "c1") -> CropDraft:
    return CropDraft(
        ct_key=f"crops/{case_id}/ct.nii.gz",
        ct_sha256="b" * 64,
        mask_key=f"crops/{case_id}/mask.nii.gz",
        mask_sha256="c" * 64,
        roi_key=f"crops/{case_id}/roi.json",
    )


def prepared(catalog: Catalog, case_id: str = "c1", patient_id: str = "p1") -> ScanRecord:
    scan = catalog.add_scan(draft(case_id, patient_id), None)
    catalog.record_prepared(scan.scan_id, LANDMARKS, ROI, crop(case_id), None)
    return catalog.scan(scan.scan_id)


def predict(
    catalog: Catalog, scan: ScanRecord, version: int, nodes: list | None = None, model: str = "retroln"
):
    return catalog.record_prediction(
        scan.scan_id,
        model_name=model,
        version=version,
        label_key=f"v{version}/labels.nii.gz",
        page_key=f"v{version}/page.html",
        sha256="d" * 64,
        nodes=[NODE] if nodes is None else nodes,
        run_id=None,
    )


class TestRuns:
    def test_a_run_ends_with_its_sum(self, catalog: Catalog):
        run_id = catalog.begin_run("ingest", {"limit": 3}, external_id="prefect-1")
        catalog.finish_run(run_id, Accounting(4, 1, 1, 1, 1), "failed")
        run = catalog.runs()[0]
        assert (run.run_id, run.flow, run.external_id, run.parameters) == (
            run_id,
            "ingest",
            "prefect-1",
            {"limit": 3},
        )
        assert (run.n_in, run.n_done, run.n_skipped, run.n_quarantined, run.n_failed) == (4, 1, 1, 1, 1)
        assert run.state == "failed"
        assert run.started_at.tzinfo is UTC
        assert run.started_at <= run.finished_at <= datetime.now(UTC) + timedelta(seconds=1)

    def test_finishing_twice_is_fine_only_with_the_same_result(self, catalog: Catalog):
        run_id = catalog.begin_run("ingest", {})
        for _ in range(2):
            catalog.finish_run(run_id, Accounting(1, 1), "completed")
        with pytest.raises(ConflictError, match="finished already"):
            catalog.finish_run(run_id, Accounting(1, failed=1), "failed")
        with pytest.raises(NotFoundError):
            catalog.finish_run(999, None, "failed")

    def test_a_restarted_flow_goes_on_with_its_unfinished_run(self, catalog: Catalog):
        first = catalog.begin_run("train", {}, external_id="x")
        assert catalog.begin_run("train", {}, external_id="x") == first
        assert catalog.begin_run("infer", {}, external_id="x") != first
        catalog.finish_run(first, None, "crashed")
        assert catalog.begin_run("train", {}, external_id="x") != first
        assert catalog.begin_run("train", {}) != catalog.begin_run("train", {})

    def test_runs_come_newest_first(self, catalog: Catalog):
        ids = [catalog.begin_run("ingest", {}) for _ in range(3)]
        assert [run.run_id for run in catalog.runs(limit=2)] == ids[:0:-1]


class TestScans:
    def test_a_scan_comes_back_as_it_was_said(self, catalog: Catalog):
        added = catalog.add_scan(draft(), catalog.begin_run("ingest", {}))
        assert catalog.current_scan("c1") == catalog.scan(added.scan_id) == added
        assert (added.revision, added.state, added.predicted_version) == (1, ScanState.INGESTED, 0)
        assert added.shape == (10, 20, 30)
        assert np.array_equal(added.affine, AFFINE)
        assert added.source_uri == {"ct": "p1/c1/ct.nii.gz"}
        assert added.created_at.tzinfo is UTC
        with pytest.raises(FrozenInstanceError):
            added.state = ScanState.PREPARED

    def test_ids_match_whole(self, catalog: Catalog):
        catalog.add_scan(draft("case-10"), None)
        assert catalog.current_scan("case-1") is None
        assert catalog.current_scan("CASE-10") is None
        assert catalog.current_scan("case-10%") is None

    def test_a_new_revision_supersedes_and_starts_over(self, catalog: Catalog):
        old = prepared(catalog)
        predict(catalog, old, 1)
        new = catalog.add_scan(draft(source_fingerprint="etag-2"), None)
        assert (new.revision, new.state, new.predicted_version) == (2, ScanState.INGESTED, 0)
        assert catalog.current_scan("c1") == new
        assert catalog.scan(old.scan_id).state is ScanState.SUPERSEDED
        assert [scan.scan_id for scan in catalog.scans()] == [new.scan_id]
        assert catalog.scans_to_infer("retroln", 2) == []
        for late in (
            lambda: predict(catalog, old, 2),
            lambda: catalog.quarantine(old.scan_id, "r", "d", None),
            lambda: catalog.record_prepared(old.scan_id, LANDMARKS, ROI, crop("other"), None),
        ):
            with pytest.raises(ConflictError):
                late()

    def test_only_one_of_many_writers_adds_a_revision(self, catalog: Catalog):
        def add(number: int) -> int | None:
            try:
                return catalog.add_scan(draft(source_fingerprint=str(number)), None).revision
            except ConflictError:
                return None

        with ThreadPoolExecutor(8) as pool:
            revisions = [revision for revision in pool.map(add, range(8)) if revision]
        assert sorted(revisions) == list(range(1, len(revisions) + 1))
        history = catalog.case_history("c1")
        assert [scan.revision for scan in history.scans] == sorted(revisions)
        states = [scan.state for scan in history.scans]
        assert states == [ScanState.SUPERSEDED] * (len(states) - 1) + [ScanState.INGESTED]

    @pytest.mark.parametrize("state", [ScanState.PREPARED, ScanState.SUPERSEDED, ScanState.REQUEUED])
    def test_a_scan_cannot_begin_in_the_middle(self, catalog: Catalog, state: ScanState):
        with pytest.raises(ConflictError, match="cannot begin"):
            catalog.add_scan(draft(state=state), None)

    def test_an_ingested_scan_without_a_ct_is_refused(self, catalog: Catalog):
        with pytest.raises(ConflictError):
            catalog.add_scan(draft(ct_key=None), None)
        assert catalog.scans() == []

    def test_listing_by_state_patient_and_page(self, catalog: Catalog):
        ids = [catalog.add_scan(draft(f"c{n}", f"p{n % 2}"), None).scan_id for n in range(5)]
        catalog.quarantine(ids[0], "bad", "why", None)
        assert [s.scan_id for s in catalog.scans(state=ScanState.INGESTED, limit=2)] == ids[1:3]
        assert [s.scan_id for s in catalog.scans(limit=2, after_id=ids[1])] == ids[2:4]
        assert [s.scan_id for s in catalog.scans(patient_id="p0")] == ids[::2]
        counts = catalog.count_by_state()
        assert counts.pop(ScanState.INGESTED) == 4
        assert counts.pop(ScanState.QUARANTINED) == 1
        assert set(counts.values()) == {0}

    def test_a_touched_fingerprint_changes_nothing_else(self, catalog: Catalog):
        scan = catalog.add_scan(draft(), None)
        catalog.touch_fingerprint(scan.scan_id, "etag-2")
        after = catalog.scan(scan.scan_id)
        assert after == replace(scan, source_fingerprint="etag-2", updated_at=after.updated_at)
        assert len(catalog.case_history("c1").events) == 1

    def test_bytes_that_come_back_bring_their_scan_back(self, catalog: Catalog):
        first = catalog.add_scan(draft(source_sha256="a"), None)
        second = catalog.add_scan(draft(source_sha256="b"), None)
        catalog.hold_delivery(held(), None, follows=second.scan_id)
        assert catalog.superseded_by_bytes("c1", "b") is None
        assert catalog.superseded_by_bytes("c1", "a") == catalog.scan(first.scan_id)
        back = catalog.bring_back(first.scan_id, "f", None, follows=second.scan_id)
        assert (back.scan_id, back.state, back.source_fingerprint) == (1, ScanState.INGESTED, "f")
        assert catalog.current_scan("c1") == back
        assert catalog.held_deliveries() == []
        assert catalog.add_scan(draft(source_sha256="c"), None).revision == 3

    def test_a_held_delivery_changes_no_scan_and_follows_the_present_one(self, catalog: Catalog):
        first = catalog.add_scan(draft(), None)
        for _ in range(2):
            catalog.hold_delivery(held(), None, follows=first.scan_id)
        (delivery,) = catalog.held_deliveries()
        assert delivery == catalog.held_delivery("c1")
        assert (delivery.scan_id, delivery.reason) == (first.scan_id, "truncated")
        assert catalog.current_scan("c1") == first
        catalog.add_scan(draft(source_sha256="b"), None)
        with pytest.raises(ConflictError, match="another run added case c1 meanwhile"):
            catalog.hold_delivery(held(), None, follows=first.scan_id)
        assert catalog.held_deliveries() == []

    def test_unknown_ids_are_not_found(self, catalog: Catalog):
        for ask in (catalog.scan, catalog.crop_of, catalog.landmarks_of):
            with pytest.raises(NotFoundError):
                ask(42)
        for ask in (catalog.requeue, catalog.case_history, catalog.dataset):
            with pytest.raises(NotFoundError):
                ask("nobody")
        assert catalog.current_scan("nobody") is None


class TestHoldingBack:
    def test_a_case_held_at_ingest_is_taken_by_ingest_again(self, catalog: Catalog):
        scan = catalog.add_scan(held(), None)
        assert (scan.state, scan.reason) == (ScanState.QUARANTINED, "truncated")
        assert scan.detail == "ct.nii.gz: truncated; got: 10 bytes"
        released = catalog.requeue("c1")
        assert (released.state, released.source_fingerprint) == (ScanState.REQUEUED, "")
        assert (released.reason, released.detail) == (None, None)
        assert catalog.add_scan(draft(), None).revision == 2

    def test_a_case_held_at_prepare_is_taken_by_prepare_again(self, catalog: Catalog):
        scan = catalog.add_scan(draft(), None)
        catalog.quarantine(scan.scan_id, "l2_unresolved", "look", None)
        assert catalog.scans_to_prepare() == []
        assert catalog.requeue("c1").state is ScanState.INGESTED
        assert catalog.scans_to_prepare() == [scan.scan_id]

    def test_a_case_held_at_inference_is_taken_by_inference_again(self, catalog: Catalog):
        scan = prepared(catalog)
        catalog.quarantine(scan.scan_id, "implausible", "look", None)
        assert catalog.scans_to_infer("retroln", 1) == []
        assert catalog.requeue("c1").state is ScanState.PREPARED
        assert catalog.scans_to_infer("retroln", 1) == [scan.scan_id]

    def test_a_failed_scan_may_be_tried_again_at_once(self, catalog: Catalog):
        scan = catalog.add_scan(draft(), None)
        for _ in range(2):
            assert catalog.fail(scan.scan_id, "OSError", "disk full", None).reason == "OSError"
        catalog.record_prepared(scan.scan_id, LANDMARKS, ROI, crop(), None)
        after = catalog.scan(scan.scan_id)
        assert (after.state, after.reason, after.detail) == (ScanState.PREPARED, None, None)

    def test_only_a_held_case_is_requeued(self, catalog: Catalog):
        catalog.add_scan(draft(), None)
        with pytest.raises(ConflictError, match="not held back"):
            catalog.requeue("c1")

    def test_every_step_is_an_event(self, catalog: Catalog):
        run_id = catalog.begin_run("prepare", {})
        scan = catalog.add_scan(draft(), run_id)
        catalog.quarantine(scan.scan_id, "l2_unresolved", "look", run_id)
        catalog.requeue("c1")
        catalog.record_prepared(scan.scan_id, LANDMARKS, ROI, crop(), run_id)
        catalog.add_scan(draft(), None)
        told = [(e.from_state, e.to_state, e.reason, e.run_id) for e in catalog.case_history("c1").events]
        assert told == [
            (None, "ingested", None, run_id),
            ("ingested", "quarantined", "l2_unresolved", run_id),
            ("quarantined", "ingested", None, None),
            ("ingested", "prepared", None, run_id),
            ("prepared", "superseded", "new_revision", None),
            (None, "ingested", None, None),
        ]


class TestPreparation:
    def test_what_was_prepared_comes_back(self, catalog: Catalog):
        scan = prepared(catalog)
        found = catalog.crop_of(scan.scan_id)
        assert (found.ct_key, found.roi_key, found.mask_sha256) == (
            "crops/c1/ct.nii.gz",
            "crops/c1/roi.json",
            "c" * 64,
        )
        assert (found.start, found.stop, found.clamped_sides) == ((1, 2, 3), (10, 20, 30), ("anterior",))
        assert (found.containment, found.roi) == (0.99, ROI.document)
        landmarks = catalog.landmarks_of(scan.scan_id)
        assert (landmarks.rung, landmarks.anchored, landmarks.truncated) == ("l2", True, ("T12",))
        assert landmarks.levels == {"L2": {"volume_mm3": 3.5, "centroid_world_mm": [1, 2, 3]}}

    def test_a_run_knows_what_it_prepared(self, catalog: Catalog):
        run_id, scan = catalog.begin_run("prepare", {}), catalog.add_scan(draft(), None)
        catalog.record_prepared(scan.scan_id, LANDMARKS, ROI, crop(), run_id)
        prepared(catalog, "c2")
        ((case_id, landmarks, sides),) = catalog.prepared_by(run_id)
        assert (case_id, landmarks, sides) == ("c1", catalog.landmarks_of(scan.scan_id), ("anterior",))

    def test_the_same_answer_twice_is_one(self, catalog: Catalog):
        scan = prepared(catalog)
        catalog.record_prepared(scan.scan_id, LANDMARKS, ROI, crop(), None)
        assert len(catalog.case_history("c1").events) == 2
        with pytest.raises(ConflictError):
            catalog.record_prepared(scan.scan_id, LANDMARKS, ROI, replace(crop(), ct_sha256="9"), None)

    def test_it_is_all_or_nothing(self, catalog: Catalog):
        scan = catalog.add_scan(draft(), None)
        with pytest.raises(ConflictError):
            catalog.record_prepared(scan.scan_id, LANDMARKS, replace(ROI, containment=1.5), crop(), None)
        assert catalog.scan(scan.scan_id) == scan
        with pytest.raises(NotFoundError):
            catalog.landmarks_of(scan.scan_id)

    def test_labelled_means_prepared_with_a_mask(self, catalog: Catalog):
        prepared(catalog, "c2", "p2")
        first = prepared(catalog, "c1", "p1")
        bare = catalog.add_scan(draft("c3", mask_key=None), None)
        no_mask = replace(crop("c3"), mask_key=None, mask_sha256=None)
        catalog.record_prepared(bare.scan_id, LANDMARKS, replace(ROI, containment=None), no_mask, None)
        catalog.add_scan(draft("c4"), None)
        pairs = catalog.labelled_prepared()
        assert [scan.case_id for scan, _ in pairs] == ["c1", "c2"]
        assert pairs[0] == (first, catalog.crop_of(first.scan_id))


class TestDatasets:
    def dataset(self, catalog: Catalog, version: str = "v1") -> DatasetDraft:
        scans = [prepared(catalog, f"c{n}", f"p{n}") for n in range(3)]
        members = [
            MemberDraft(scan_id=s.scan_id, case_id=s.case_id, patient_id=s.patient_id, role=role, fold=fold)
            for s, (role, fold) in zip(scans, [("train", 0), ("train", 1), ("test", None)], strict=True)
        ]
        return DatasetDraft(version=version, manifest_key="datasets/v1.json", members=tuple(members))

    def test_a_version_is_stored_once(self, catalog: Catalog):
        wanted = self.dataset(catalog)
        record = catalog.add_dataset(wanted)
        assert catalog.add_dataset(wanted) == catalog.dataset("v1") == record
        assert record.members == wanted.members
        assert catalog.train_patients() == {"p0", "p1"}
        assert catalog.test_patients() == {"p2"}
        with pytest.raises(ConflictError, match="other members"):
            catalog.add_dataset(replace(wanted, members=wanted.members[:2]))

    def test_racing_writers_store_one(self, catalog: Catalog):
        wanted = self.dataset(catalog)
        with ThreadPoolExecutor(6) as pool:
            records = list(pool.map(lambda _: catalog.add_dataset(wanted), range(6)))
        assert len({record.dataset_id for record in records}) == 1

    def test_a_patient_is_never_on_both_sides(self, catalog: Catalog):
        wanted = self.dataset(catalog)
        leaking = replace(wanted.members[2], patient_id="p0")
        with pytest.raises(ConflictError, match="training and test at once; got: p0"):
            catalog.add_dataset(replace(wanted, members=(*wanted.members[:2], leaking)))

    def test_an_unknown_scan_is_no_member(self, catalog: Catalog):
        wanted = self.dataset(catalog)
        with pytest.raises(ConflictError):
            catalog.add_dataset(replace(wanted, members=(replace(wanted.members[0], scan_id=999),)))
        with pytest.raises(NotFoundError):
            catalog.dataset("v1")


class TestResults:
    def test_results_are_current_for_their_version(self, catalog: Catalog):
        scan = prepared(catalog)
        record = predict(catalog, scan, 3)
        assert catalog.scan(scan.scan_id).predicted_version == 3
        assert (record.version, record.n_nodes, record.label_key) == (3, 1, "v3/labels.nii.gz")
        (node,) = catalog.nodes_of(scan.scan_id)
        assert (node.label, node.short_axis_mm, node.recist, node.level) == (1, 9.9, "normal", "L2")
        assert node.centroid_world_mm == (1.0, -2.0, 3.5)

    def test_repeating_replaces(self, catalog: Catalog):
        scan = prepared(catalog)
        first = predict(catalog, scan, 1, [NODE, {**NODE, "label": 2}])
        second = predict(catalog, scan, 1)
        assert first.prediction_id == second.prediction_id
        assert [node.label for node in catalog.nodes_of(scan.scan_id)] == [1]
        assert len(catalog.predictions_of(scan.scan_id)) == 1

    def test_each_version_keeps_its_own_results(self, catalog: Catalog):
        scan = prepared(catalog)
        predict(catalog, scan, 1)
        predict(catalog, scan, 2, [])
        assert [p.version for p in catalog.predictions_of(scan.scan_id)] == [1, 2]
        assert catalog.nodes_of(scan.scan_id) == []
        assert len(catalog.nodes_of(scan.scan_id, version=1)) == 1

    def test_a_bad_node_leaves_the_scan_unseen(self, catalog: Catalog):
        scan = prepared(catalog)
        with pytest.raises(ConflictError):
            predict(catalog, scan, 1, [{**NODE, "recist": "huge"}])
        assert catalog.scans_to_infer("retroln", 1) == [scan.scan_id]
        assert catalog.predictions_of(scan.scan_id) == []

    def test_what_is_left_follows_the_version_in_both_directions(self, catalog: Catalog):
        scans = [prepared(catalog, f"c{n}", f"p{n}") for n in range(4)]
        ids = [scan.scan_id for scan in scans]
        for scan, version in zip(scans, [0, 1, 2, 3], strict=True):
            if version:
                predict(catalog, scan, version)
        assert catalog.scans_to_infer("retroln", 2) == [ids[0], ids[1], ids[3]]
        assert catalog.scans_to_infer("retroln", 2, limit=2) == ids[:2]
        assert catalog.scans_to_infer("retroln", 1, limit=3) == [ids[0], ids[2], ids[3]]

    def test_another_model_of_the_same_version_has_seen_nothing(self, catalog: Catalog):
        scan = prepared(catalog)
        predict(catalog, scan, 1, model="other")
        predict(catalog, scan, 1, [NODE, {**NODE, "label": 2}])
        assert catalog.scans_to_infer("retroln", 1) == []
        for model in ("a-model", "other", "z-model"):
            assert catalog.scans_to_infer(model, 1) == [scan.scan_id]
        assert [node.label for node in catalog.nodes_of(scan.scan_id)] == [1, 2]
        predict(catalog, scan, 1, model="other")
        assert [node.label for node in catalog.nodes_of(scan.scan_id)] == [1]

    def test_scans_in_training_are_left_out(self, catalog: Catalog):
        scans = [prepared(catalog, f"c{n}", f"p{n}") for n in range(3)]
        again = prepared(catalog, "c0-later", "p0")
        members = [
            MemberDraft(scan_id=s.scan_id, case_id=s.case_id, patient_id=s.patient_id, role=role)
            for s, role in zip(scans, ["train", "test"], strict=False)
        ]
        dataset = catalog.add_dataset(DatasetDraft(version="v", manifest_key="m", members=tuple(members)))
        left = catalog.scans_to_infer("retroln", 1, exclude_training_scans_of=dataset.dataset_id)
        assert list(catalog.case_ids(left).values()) == ["c1", "c2", "c0-later"]
        assert again.scan_id in catalog.scans_to_infer("retroln", 1)

    def test_the_whole_story_of_a_case(self, catalog: Catalog):
        scan = prepared(catalog)
        predict(catalog, scan, 1)
        member = MemberDraft(scan_id=scan.scan_id, case_id="c1", patient_id="p1", role="train", fold=0)
        catalog.add_dataset(DatasetDraft(version="v", manifest_key="m", members=(member,)))
        history = catalog.case_history("c1")
        assert history.crop == catalog.crop_of(scan.scan_id)
        assert history.landmarks == catalog.landmarks_of(scan.scan_id)
        assert [p.version for p in history.predictions] == [1]
        assert [node.label for node in history.nodes] == [1]
        assert history.datasets == ("v",)

    def test_decisions_are_kept_in_order(self, catalog: Catalog):
        for version, action in enumerate(["refuse", "promote", "rollback"], start=1):
            catalog.add_audit(
                action=action,
                model_name="retroln",
                version=version,
                previous_version=version - 1 or None,
                reviewer="Dr. Müller",
                comment="looked at all cases",
                gate={"passed": True},
            )
        catalog.add_audit(action="promote", model_name="other", version=1, reviewer="r", comment="c")
        audits = catalog.audits("retroln")
        assert [(a.action, a.version, a.previous_version) for a in audits] == [
            ("refuse", 1, None),
            ("promote", 2, 1),
            ("rollback", 3, 2),
        ]
        assert (audits[0].reviewer, audits[0].gate) == ("Dr. Müller", {"passed": True})
        assert len(catalog.audits()) == 4


def plan_of(catalog: Catalog, statement: Select) -> str:
    """What the database means to do for a statement, as text."""
    engine = catalog.database.engine
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[engine.dialect.name].dialect()
    shown = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN (FORMAT JSON) "
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(explain + shown.replace("%", "%%")).all()
    return "\n".join(json.dumps(row[-1]) if engine.dialect.name != "sqlite" else row[-1] for row in rows)


def rows_read(catalog: Catalog, statement: Select) -> int:
    """Rows PostgreSQL really touched, index entries thrown away included."""
    shown = str(statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))
    with catalog.database.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {shown}").scalar_one()

    def total(node: dict) -> int:
        own = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        return int(own * node["Actual Loops"]) + sum(total(child) for child in node.get("Plans", []))

    return total(plan[0]["Plan"])


@pytest.fixture
def large(catalog: Catalog) -> Catalog:
    """100,000 scans, all prepared and seen by version 7, but for five of each kind that are left."""
    first = prepared(catalog, "first")
    columns = (
        "patient_id, revision, source_uri, source_fingerprint, label_ids, ct_key, created_at, updated_at"
    )
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
    if catalog.database.engine.dialect.name == "sqlite":
        copy = f"INSERT INTO scans (case_id, state, predicted_version, predicted_model, {columns}) {numbers} "
    else:
        copy = f"{numbers} INSERT INTO scans (case_id, state, predicted_version, predicted_model, {columns}) "
    copy += (
        "SELECT 'case-' || i, CASE WHEN i <= 5 THEN 'ingested' ELSE 'prepared' END, "
        "CASE WHEN i <= 10 THEN 0 ELSE 7 END, CASE WHEN i <= 10 THEN '' ELSE 'retroln' END, "
        f"{columns} FROM n, scans WHERE scans.id = {first.scan_id}"
    )
    with catalog.database.engine.begin() as connection:
        connection.execute(text(copy))
        connection.execute(text("ANALYZE"))
    return catalog


def test_what_is_left_is_found_by_an_index_alone(large: Catalog):
    for statement, index in (
        (to_prepare(), "ix_scans_waiting"),
        *((part, "ix_scans_predicted") for part in to_infer("retroln", 7, exclude_training_scans_of=1)),
        *((part.limit(10), "ix_scans_predicted") for part in to_infer("retroln", 7)),
    ):
        plan = plan_of(large, statement)
        assert index in plan
        assert "SCAN scans" not in plan
        assert not re.search(r'"Seq Scan"[^{}]*"Relation Name": "scans"', plan)
    assert len(large.scans_to_prepare()) == 5
    assert len(large.scans_to_infer("retroln", 7)) == 6


@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_no_more_rows_are_read_than_are_left(large: Catalog):
    """On PostgreSQL, which counts them; SQLite's plan is checked above."""
    assert rows_read(large, to_prepare()) <= 15
    assert sum(rows_read(large, part) for part in to_infer("retroln", 7)) <= 20
    assert sum(rows_read(large, part) for part in to_infer("retroln", 8)) > 99_000
