"""Prepare of scans without labels, an oracle in TotalSegmentator's place: stored, recorded, used again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("totalsegmentator")

from retroln.anatomy import totalseg_vertebrae
from retroln.anatomy.totalseg_vertebrae import Segmented
from retroln.anatomy.totalseg_weights import FAST
from retroln.anatomy.vertebrae import Vertebrae
from retroln.catalog.accounting import Accounting
from retroln.catalog.catalog import Catalog
from retroln.imaging.phantom import Phantom
from retroln.imaging.volume import Volume
from retroln.settings import RoiSpec, Settings, TotalSegSpec
from retroln.steps import infer, prepare, weights
from retroln.steps.runs import Run
from retroln.steps.workspace import open_workspace
from tests.unit.test_weights import write_network
from tests.way import embedded, ingest_and_prepare

Deliver = Callable[..., Path]


class Oracle:
    """Answers as TotalSegmentator should, from the phantom's truth, and counts."""

    def __init__(self, phantom: Phantom, shift: int = 0) -> None:
        self.labels = np.where(phantom.vertebrae.array > 0, phantom.vertebrae.array + shift, 0).astype(
            np.uint8
        )
        self.calls = 0

    def __call__(self, ct: Volume, *_: Any) -> Segmented:
        self.calls += 1
        labels = ct.with_array(self.labels)
        return Segmented(labels, Vertebrae.from_label_map(labels, "totalseg-v2"), ("stand_in: an oracle",))


@pytest.fixture
def chosen(settings: Settings, tmp_path: Path) -> Settings:
    """A platform that has weights (files without networks) and shall use them."""
    write_network(tmp_path / "w", FAST)
    found = weights.import_weights(settings, [tmp_path / "w"])
    spec = TotalSegSpec(weights=found.sha256, quality="fast", device="cpu")
    return embedded(tmp_path, landmarks="totalseg", totalseg=spec)


@pytest.fixture
def oracle(phantom: Phantom, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    found = Oracle(phantom)
    monkeypatch.setattr(totalseg_vertebrae, "segment", found)
    return found


def prepare_again(settings: Settings) -> Accounting:
    prepare.reopen(settings)
    run = Run.begin(settings, "prepare", {})
    backlog = prepare.backlog(settings)
    prepare.prepare(settings, backlog.left, run_id=run.run_id, owner="test")
    return run.settle(backlog)[0]


def catalog_of(settings: Settings) -> Catalog:
    return open_workspace(settings).catalog


def test_a_bare_ct_gets_its_vertebrae_and_says_so(chosen: Settings, deliver: Deliver, oracle: Oracle) -> None:
    deliver("BARE", parts=("ct",))
    assert ingest_and_prepare(chosen)[1].done == 1
    history = catalog_of(chosen).case_history("BARE")
    scan, found = history.scans[-1], history.landmarks
    assert found is not None and (found.source, found.label_ids, found.anchored) == (
        "totalseg",
        "totalseg-v2",
        True,
    )
    assert found.findings[0].startswith("made: by TotalSegmentator 2.18.0, fast, weights ")
    assert found.findings[1] == "stand_in: an oracle"
    assert scan.vertebrae_key is not None and scan.vertebrae_key.startswith(
        f"scans/BARE/{scan.source_sha256[:16]}/"
    )
    assert "vertebrae" not in scan.source_uri
    levels = infer._levels(open_workspace(chosen), scan, Path(chosen.work_dir))
    assert levels is not None and {name for name, *_ in levels.extents} >= {"L1", "L2", "L3", "L4"}


def test_labels_that_were_made_are_used_again(
    chosen: Settings, tmp_path: Path, deliver: Deliver, oracle: Oracle
) -> None:
    deliver("BARE", parts=("ct",))
    ingest_and_prepare(chosen)
    before = catalog_of(chosen).case_history("BARE")
    wider = embedded(tmp_path, landmarks="totalseg", totalseg=chosen.totalseg, roi=RoiSpec(lateral_mm=120))
    assert prepare_again(wider).done == 1
    assert oracle.calls == 1
    after = catalog_of(chosen).case_history("BARE")
    assert after.landmarks is not None and before.landmarks is not None
    assert after.landmarks.findings == before.landmarks.findings
    assert after.crop != before.crop


def test_another_way_makes_them_anew(
    chosen: Settings, tmp_path: Path, deliver: Deliver, oracle: Oracle
) -> None:
    deliver("BARE", parts=("ct",))
    ingest_and_prepare(chosen)
    first = catalog_of(chosen).case_history("BARE").scans[-1].vertebrae_key
    spec = chosen.totalseg.model_copy(update={"ribs": True})
    other = embedded(tmp_path, landmarks="totalseg", totalseg=spec, roi=RoiSpec(lateral_mm=120))
    assert prepare_again(other).done == 1
    assert oracle.calls == 2
    assert catalog_of(chosen).case_history("BARE").scans[-1].vertebrae_key != first


def test_switched_off_a_scan_keeps_the_labels_it_was_prepared_with(
    chosen: Settings, tmp_path: Path, deliver: Deliver, oracle: Oracle
) -> None:
    deliver("BARE", parts=("ct",))
    ingest_and_prepare(chosen)
    off = embedded(tmp_path, roi=RoiSpec(lateral_mm=120))
    assert prepare_again(off).done == 1
    found = catalog_of(chosen).case_history("BARE").landmarks
    assert oracle.calls == 1 and found is not None and found.source == "totalseg"


def test_delivered_labels_are_taken_as_they_are(chosen: Settings, deliver: Deliver, oracle: Oracle) -> None:
    deliver("WHOLE")
    assert ingest_and_prepare(chosen)[1].done == 1
    found = catalog_of(chosen).case_history("WHOLE").landmarks
    assert oracle.calls == 0 and found is not None and found.source == "provided"


def test_what_the_gate_refuses_is_held_back_with_the_label_map_named(
    chosen: Settings, deliver: Deliver, phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Oracle(phantom)
    l3 = np.argwhere(wrong.labels == 29)[:, 2].mean()
    wrong.labels[:, :, int(l3) - 3 : int(l3) + 3] = 0
    monkeypatch.setattr(totalseg_vertebrae, "segment", wrong)
    deliver("BARE", parts=("ct",))
    assert ingest_and_prepare(chosen)[1].quarantined == 1
    scan = catalog_of(chosen).case_history("BARE").scans[-1]
    assert scan.reason == "landmarks_implausible"
    assert scan.detail is not None and scan.detail.startswith("scans/BARE/")


def test_weights_are_fetched_before_the_first_case(
    chosen: Settings, deliver: Deliver, oracle: Oracle
) -> None:
    deliver("BARE", parts=("ct",))
    run = Run.begin(chosen, "prepare", {})
    key = next(iter(open_workspace(chosen).store.list("weights/totalseg/"))).key
    open_workspace(chosen).store.delete(key)
    with pytest.raises(Exception, match=r"weights/totalseg|no such object"):
        prepare.prepare(chosen, [], run_id=run.run_id, owner="test")
    assert oracle.calls == 0


def test_a_case_page_warns_of_stand_in_weights(chosen: Settings, deliver: Deliver, oracle: Oracle) -> None:
    deliver("BARE", parts=("ct",))
    ingest_and_prepare(chosen)

    class Model:
        dataset = type("Dataset", (), {"members": ()})

    class Contract:
        stand_in = None

    history = catalog_of(chosen).case_history("BARE")
    said = infer._cautions(Model(), Contract(), history)  # type: ignore[arg-type]
    assert said == ["The vertebrae were labelled by stand-in weights: an oracle."]
