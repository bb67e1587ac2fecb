"""The queue of landmarks in both databases: order, who said what for good, and what a word does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from retroln.catalog.catalog import Catalog
from retroln.catalog.records import (
    CropDraft,
    LandmarkReviewDraft,
    LandmarksDraft,
    RoiDraft,
    ScanDraft,
    ScanRecord,
)
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError, NotFoundError
from retroln.settings import RoiSpec


def _add(catalog: Catalog, case: str = "c1", sha: str = "s") -> ScanRecord:
    draft = ScanDraft(
        case_id=case,
        patient_id="p1",
        source_uri={"ct": "k"},
        source_fingerprint=sha,
        source_sha256=sha,
        ct_key="ct",
        vertebrae_key="delivered.nii.gz",
        shape=(1, 1, 1),
        affine=[[1.0]],
        source_shape=(1, 1, 1),
        source_affine=[[1.0]],
        orientation="RAS",
    )
    return catalog.add_scan(draft, None)


def _landmarks(confidence: float | None = 0.4, **changes: Any) -> LandmarksDraft:
    values: dict[str, Any] = {
        "source": "provided",
        "label_ids": "totalseg-v2",
        "rung": "none",
        "anchored": False,
        "truncated": (),
        "findings": ["unanchored: text"],
        "levels": {"L2": {"volume_mm3": 5.0, "fragments": {"count": 0}}},
        "confidence": confidence,
        "picture_key": "a.png",
    }
    return LandmarksDraft(**(values | changes))


def _hold(catalog: Catalog, scan: ScanRecord, confidence: float | None = 0.4) -> None:
    catalog.hold_landmarks(scan.scan_id, "unanchored", "why", _landmarks(confidence), None)


def _word(scan: ScanRecord, action: str = "accept", **given: Any) -> LandmarkReviewDraft:
    words = {"reviewer": "Dr A", "comment": "seen"} | given
    return LandmarkReviewDraft(scan_id=scan.scan_id, action=action, **words)


def test_held_landmarks_keep_their_numbers(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    held = catalog.current_scan("c1")
    assert held is not None
    assert (held.state, held.reason, held.detail) == (ScanState.QUARANTINED, "unanchored", "why")
    found = catalog.landmarks_of(scan.scan_id)
    assert (found.rung, found.confidence, found.picture_key) == ("none", 0.4, "a.png")
    assert found.levels["L2"]["fragments"] == {"count": 0}
    _hold(catalog, scan, 0.2)  # held again: one row, the new numbers
    assert catalog.landmarks_of(scan.scan_id).confidence == 0.2


def test_a_label_map_that_was_made_stays_with_the_held_scan(catalog: Catalog) -> None:
    scan = _add(catalog)
    catalog.hold_landmarks(scan.scan_id, "unanchored", "why", _landmarks(), None, vertebrae_key="made.nii.gz")
    assert catalog.scan(scan.scan_id).vertebrae_key == "made.nii.gz"


def test_the_queue_holds_landmark_cases_alone_least_trusted_first(catalog: Catalog) -> None:
    scans = {case: _add(catalog, case) for case in ("a", "b", "c", "d", "e")}
    _hold(catalog, scans["a"], 0.6)
    _hold(catalog, scans["b"], 0.1)
    catalog.quarantine(scans["c"].scan_id, "not_ct", "an MR", None)
    catalog.quarantine(scans["d"].scan_id, "unanchored", "by an older release, without numbers", None)
    catalog.add_scan(
        ScanDraft(
            case_id="f",
            patient_id="p1",
            source_uri={},
            source_fingerprint="f",
            state=ScanState.QUARANTINED,
            reason="landmarks_missing",
        ),
        None,
    )
    queue = catalog.landmark_queue()
    assert [scan.case_id for scan, _ in queue] == ["d", "b", "a"]
    assert queue[0][1] is None


def test_a_word_sends_the_scan_back_and_holds_until_the_next(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    word = catalog.review_landmarks(_word(scan))
    assert (word.case_id, word.action, word.replaced_key, word.l2_world_mm) == ("c1", "accept", None, None)
    sent = catalog.scan(scan.scan_id)
    assert (sent.state, sent.reason, sent.detail) == (
        ScanState.INGESTED,
        "landmarks_reviewed",
        "accept by Dr A: seen",
    )
    assert catalog.scans_to_prepare() == [scan.scan_id]
    _hold(catalog, scan)
    point = _word(scan, "correct", l2_world_mm=(1.0, 2.5, -3.0), extent_world_mm=(-100.0, 90.5))
    catalog.review_landmarks(point)
    latest = catalog.landmark_review_of(scan.scan_id)
    assert latest is not None
    assert (latest.l2_world_mm, latest.extent_world_mm) == ((1.0, 2.5, -3.0), (-100.0, 90.5))
    assert [one.action for one in catalog.landmark_reviews("c1")] == ["accept", "correct"]


def test_a_corrected_map_replaces_the_key_and_old_results_count_no_more(catalog: Catalog) -> None:
    scan = _add(catalog)
    roi = RoiDraft(
        start=(0, 0, 0), stop=(1, 1, 1), clamped_sides=(), document={"spec": RoiSpec().model_dump()}
    )
    catalog.record_prepared(
        scan.scan_id, _landmarks(rung="l2"), roi, CropDraft(ct_key="c", ct_sha256="s", roi_key="r"), None
    )
    catalog.record_prediction(
        scan.scan_id, model_name="m", version=3, label_key="l", page_key=None, nodes=[], run_id=None
    )
    assert catalog.scan(scan.scan_id).predicted_version == 3
    word = catalog.review_landmarks(_word(scan, "correct", vertebrae_key="mended.nii.gz"))
    assert (word.vertebrae_key, word.replaced_key) == ("mended.nii.gz", "delivered.nii.gz")
    present = catalog.scan(scan.scan_id)
    assert (present.vertebrae_key, present.predicted_version, present.state) == (
        "mended.nii.gz",
        0,
        ScanState.INGESTED,
    )


def test_the_same_word_is_written_once_also_when_the_case_is_held_again(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    first = catalog.review_landmarks(_word(scan))
    assert catalog.review_landmarks(_word(scan)) == first
    _hold(catalog, scan)
    assert catalog.review_landmarks(_word(scan)) == first
    assert catalog.scan(scan.scan_id).state is ScanState.INGESTED
    assert len(catalog.landmark_reviews("c1")) == 1


def test_many_who_say_the_same_at_once_are_one(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    with ThreadPoolExecutor(6) as pool:
        words = list(pool.map(lambda _: catalog.review_landmarks(_word(scan)), range(12)))
    assert {word.review_id for word in words} == {1}


def test_of_two_who_disagree_at_once_one_hears_that_it_is_settled(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)

    def say(name: str) -> str:
        try:
            return str(catalog.review_landmarks(_word(scan, comment=name, reviewer=name)).comment)
        except ConflictError:
            return "settled"

    with ThreadPoolExecutor(2) as pool:
        heard = sorted(pool.map(say, ("one", "two")))
    assert heard[1] in ("settled", "two") and "settled" in heard
    assert len(catalog.landmark_reviews("c1")) == 1


def test_before_prepare_a_reviewer_may_say_something_else(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    catalog.review_landmarks(_word(scan))
    catalog.review_landmarks(_word(scan, comment="a typing error"))
    assert [one.comment for one in catalog.landmark_reviews("c1")][1:] == ["a typing error"]
    held = catalog.landmark_review_of(scan.scan_id)
    assert held is not None and held.comment == "a typing error"
    events = [one for one in catalog.case_history("c1").events if one.reason == "landmarks_reviewed"]
    assert [one.from_state for one in events] == ["quarantined", "ingested"]
    with pytest.raises(ConflictError, match="somebody else spoke of case c1 already"):
        catalog.review_landmarks(_word(scan, reviewer="Dr Z"))


@pytest.mark.parametrize("state", ["ingested", "not_ct", "superseded"])
def test_what_waits_for_no_word_takes_none(catalog: Catalog, state: str) -> None:
    scan = _add(catalog)
    if state == "not_ct":
        catalog.quarantine(scan.scan_id, "not_ct", "an MR", None)
    if state == "superseded":
        _hold(catalog, scan)
        _add(catalog, sha="other bytes")
    for action in ("accept", "correct"):
        with pytest.raises(ConflictError, match="does not wait") as caught:
            catalog.review_landmarks(
                _word(scan, action, l2_world_mm=(0.0, 0.0, 0.0) if action == "correct" else None)
            )
        then = "retroln prepare" if state == "ingested" else "retroln status c1"
        assert then in str(caught.value.fix)
    assert catalog.landmark_reviews("c1") == []


def test_a_word_holds_for_its_revision_alone(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    catalog.review_landmarks(_word(scan))
    newer = _add(catalog, sha="other bytes")
    assert catalog.landmark_review_of(newer.scan_id) is None
    assert [one.scan_id for one in catalog.landmark_reviews("c1")] == [scan.scan_id]


def test_a_word_on_nothing_is_named(catalog: Catalog) -> None:
    with pytest.raises(NotFoundError):
        catalog.review_landmarks(LandmarkReviewDraft(scan_id=9, action="accept", reviewer="a", comment="b"))


@pytest.mark.parametrize(
    "statement", ["UPDATE landmark_reviews SET id = id + 100", "DELETE FROM landmark_reviews", "replace"]
)
def test_words_are_append_only(catalog: Catalog, statement: str) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    catalog.review_landmarks(_word(scan))
    replacing = {
        "sqlite": "INSERT OR REPLACE INTO landmark_reviews SELECT * FROM landmark_reviews",
        "postgresql": "TRUNCATE landmark_reviews",
    }
    command = replacing[catalog.database.engine.dialect.name] if statement == "replace" else statement
    with (
        pytest.raises(DBAPIError, match="landmark_reviews is append-only"),
        catalog.database.engine.begin() as connection,
    ):
        connection.execute(text(command))
    assert len(catalog.landmark_reviews("c1")) == 1


def test_nonsense_is_refused_by_the_database(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    with pytest.raises(ConflictError, match="action"):
        catalog.review_landmarks(_word(scan, "forgive"))
    with pytest.raises(ConflictError, match="accept"):
        catalog.review_landmarks(_word(scan, "accept", vertebrae_key="mended.nii.gz"))


def test_a_withdrawal_counts_and_keeps_the_words_and_removes_the_numbers(catalog: Catalog) -> None:
    scan = _add(catalog)
    _hold(catalog, scan)
    catalog.review_landmarks(_word(scan))
    _hold(catalog, scan)
    rows = {item.name: (item.action, item.detail) for item in catalog.rows_to_withdraw("p1")}
    assert rows["landmark_reviews"] == ("kept", "1")
    assert rows["landmarks"] == ("deleted", "1")
    catalog.begin_withdrawal("p1", "letter", "Dr A")
    catalog.empty_withdrawn("p1")
    assert catalog.landmark_queue() == []
    assert len(catalog.landmark_reviews("c1")) == 1
    with pytest.raises(NotFoundError):
        catalog.landmarks_of(scan.scan_id)
