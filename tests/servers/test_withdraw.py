"""A patient takes back consent: on SQLite with a folder, and on PostgreSQL with a bucket."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.records import DatasetRecord, ScanDraft, ScanRecord
from retroln.catalog.states import ScanState
from retroln.cli import cli
from retroln.errors import ConflictError, NotFoundError, UnavailableError, UserError, WithdrawnError
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom
from retroln.settings import Settings, TrainSpec
from retroln.steps import holdings, ingest, prepare, promote, train, withdraw
from retroln.steps.runs import Run
from retroln.steps.workspace import Workspace, open_workspace
from retroln.storage.open import open_store
from retroln.tracking.runs import training_run
from tests.places import make_settings
from tests.stand_in import GOOD

SPEC = TrainSpec(profile="demo", n_folds=2, test_fraction=0.3)
CASES = {"A-CT1": "PAT-A", "A-CT2": "PAT-A", "B-CT1": "PAT-B", "C-CT1": "PAT-C", "D-CT1": "PAT-D"}
WORDS = {"reason": "letter of 3 May", "by": "Dr A"}
SHARED = ("mask.nii.gz", "vertebrae.nii.gz", "vertebrae.json", "roi.json")
"""Parts that are the same for all: every case is the same phantom with another CT."""
KEPT = ("case_events", "dataset_members")
TABLES = (
    *("scans", "landmarks", "rois", "crops", "predictions", "nodes", "datasets", "dataset_members"),
    *("case_events", "withdrawals", "withdrawal_items", "claims"),
)


@dataclass
class Platform:
    """Four patients all the way to predictions of a stand-in model that was trained on them."""

    settings: Settings
    phantom: Phantom
    folder: Path

    @property
    def workspace(self) -> Workspace:
        return open_workspace(self.settings)

    @property
    def catalog(self) -> Catalog:
        return self.workspace.catalog

    def deliver(self, case_id: str, patient_id: str, shade: int) -> None:
        """Put a case into the source; another shade is another CT."""
        source = open_store(self.settings.source_uri, self.settings)
        ct = self.phantom.ct.with_array(self.phantom.ct.array + shade)
        for name, volume in (
            ("ct", ct),
            ("vertebrae", self.phantom.vertebrae),
            ("mask", self.phantom.nodes),
        ):
            path = self.folder / "made.nii.gz"
            nifti.write_source(path, volume)
            source.put_file(path, f"{patient_id}/{case_id}/{name}.nii.gz")

    def ingest(self) -> list[CaseOutcome]:
        run = Run.begin(self.settings, "ingest", {})
        outcomes = ingest.ingest(self.settings, run_id=run.run_id)
        run.finish(outcomes)
        return outcomes

    def prepare(self) -> Accounting:
        run = Run.begin(self.settings, "prepare", {})
        backlog = prepare.backlog(self.settings)
        prepare.prepare(self.settings, backlog.left, run_id=run.run_id, owner="test")
        return run.settle(backlog)[0]

    def predict(self, scan: ScanRecord, version: int) -> None:
        base = f"predictions/retroln-v{version}/{scan.case_id}/{str(scan.source_sha256)[:16]}/"
        for name in ("labels.nii.gz", "nodes.csv", "page.html"):
            self.workspace.store.put_bytes(f"{name} of {scan.case_id} {scan.revision}".encode(), base + name)
        node = {
            "label": 1,
            "volume_mm3": 500.0,
            "short_axis_mm": 9.0,
            "long_axis_mm": 14.0,
            "centroid_world_mm": (1.0, 2.0, 3.0),
            "recist": "normal",
        }
        self.catalog.record_prediction(
            scan.scan_id,
            model_name="retroln",
            version=version,
            label_key=base + "labels.nii.gz",
            page_key=base + "page.html",
            nodes=[node],
            run_id=None,
        )

    def train(self) -> int:
        """A stand-in version on a real dataset version, with what a training leaves behind."""
        record = train.publish_dataset(self.settings, SPEC)
        short, store = record.version[:16], self.workspace.store
        store.put_bytes(b"weights", f"training/{short}/spec/fold_0/set/checkpoint_final.pth")
        cache = self.settings.work_dir / "nnunet" / f"{short}-demo" / "crops" / "A-CT1_ct.nii.gz"
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(b"a crop")
        bundle = self.folder / f"bundle-{secrets.token_hex(4)}"
        bundle.mkdir()
        (bundle / "weights").write_text(bundle.name)
        tags = {promote.DATASET_TAG: record.version, promote.SPEC_TAG: "{}"}
        tags |= {promote.TEST_HASH_TAG: train.test_hash(record), promote.SUMMARY_TAG: json.dumps(GOOD)}
        with training_run(self.settings, name="t", params={}, tags=tags) as run:
            manifest = json.loads(store.get_bytes(record.manifest_key))
            run.log_dataset(manifest, name="RetroLN", version=record.version)
            scores = [{"case_id": c, "patient_id": p, "dice": 0.5} for c, p in CASES.items()]
            run.log_json({"cases": scores, "summary": GOOD}, "test/scores.json")
            return self.workspace.registry.register(bundle, run.run_id, tags)

    def contents(self) -> dict[str, str]:
        """sha256 of every object in the store, by key."""
        store = self.workspace.store
        return {
            info.key: hashlib.sha256(store.get_bytes(info.key)).hexdigest() for info in list(store.list())
        }

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of the catalog."""
        with self.catalog.database.reading() as session:
            return {
                name: [tuple(map(str, row)) for row in session.execute(text(f"SELECT * FROM {name}"))]
                for name in TABLES
            }

    def rows_of(self, patient_id: str) -> str:
        """What the catalog says of a patient who stays, as one text."""
        scans = self.catalog.scans_of_patient(patient_id)
        histories = [self.catalog.case_history(scan.case_id) for scan in scans]
        return repr(histories)


@pytest.fixture(params=["embedded", "servers"])
def platform(request: pytest.FixtureRequest, tmp_path: Path, phantom: Phantom) -> Iterator[Platform]:
    """PAT-A has two cases, one of them in two revisions, predicted by two versions, and in a dataset."""
    made = Platform(make_settings(request.param, request, tmp_path), phantom, tmp_path)
    for shade, (case_id, patient_id) in enumerate(CASES.items()):
        made.deliver(case_id, patient_id, shade)
    made.ingest()
    made.prepare()
    version = made.train()
    for scan in made.catalog.scans():
        made.predict(scan, version)
    made.deliver("A-CT1", "PAT-A", 50)
    assert [one.outcome for one in made.ingest()].count(Outcome.DONE) == 1
    assert made.prepare() == Accounting(5, 1, 4, 0, 0)
    made.predict(made.catalog.scans_of_patient("PAT-A")[-1], made.train())
    yield made
    made.catalog.close()


def tombstones(platform: Platform) -> list[tuple[str, int, ScanState]]:
    return [(s.case_id, s.revision, s.state) for s in platform.catalog.scans_of_patient("PAT-A")]


GONE = [
    ("A-CT1", 1, ScanState.SUPERSEDED),
    ("A-CT2", 1, ScanState.WITHDRAWN),
    ("A-CT1", 2, ScanState.WITHDRAWN),
]


def require_gone(platform: Platform, before: dict[str, str]) -> None:
    """Nothing of PAT-A is stored, and everything of the others is as it was."""
    after = platform.contents()
    mine = {key for key in before if "A-CT" in key}
    assert len(mine) == 3 * (4 + 3 + 3)
    assert not [key for key in after if "A-CT" in key or "PAT-A" in key]
    own = {before[key] for key in mine if not key.endswith(SHARED)}
    assert len(own) == 3 * (1 + 1 + 3)
    assert not own & set(after.values())
    shared = {key for key in before if key.startswith(("datasets/", "training/"))}
    assert after == {key: sha256 for key, sha256 in before.items() if key not in mine | shared}
    for scan in platform.catalog.scans_of_patient("PAT-A"):
        assert (scan.source_uri, scan.source_fingerprint, scan.detail) == ({}, "", None)
        empty = (scan.source_sha256, scan.ct_key, scan.vertebrae_key, scan.mask_key, scan.shape, scan.affine)
        assert set(empty) == {None}
    assert tombstones(platform) == GONE
    assert {row.name for row in platform.catalog.rows_to_withdraw("PAT-A")} - {"run_outcomes"} == set(KEPT)


def test_a_withdrawn_patient_leaves_nothing_and_the_others_everything(platform: Platform) -> None:
    before, others = platform.contents(), [platform.rows_of(f"PAT-{name}") for name in "BCD"]
    found = withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    assert found.cases == ("A-CT1", "A-CT2")
    assert len(found.source) == 6
    require_gone(platform, before)
    assert [platform.rows_of(f"PAT-{name}") for name in "BCD"] == others
    assert not list((platform.settings.work_dir / "nnunet").iterdir())

    record = platform.catalog.withdrawal_of("PAT-A")
    assert record is not None
    assert (record.reason, record.by) == ("letter of 3 May", "Dr A")
    noted = {(item.kind, item.name, item.action) for item in platform.catalog.withdrawn_items("PAT-A")}
    assert {("object", key, "deleted") for key in before if "A-CT" in key} <= noted
    assert {("source", "PAT-A/A-CT1/ct.nii.gz", "named"), ("version", "1", "marked")} <= noted
    assert {("row", "nodes", "deleted"), ("row", "scans", "emptied"), ("row", "case_events", "kept")} <= noted
    events = platform.catalog.case_history("A-CT1").events
    assert [(e.from_state, e.to_state) for e in events if e.reason == "withdrawn"] == [
        ("prepared", "withdrawn"),
        ("superseded", "superseded"),
    ]
    assert platform.catalog.claims() == []


def test_models_are_marked_and_what_names_the_patient_in_mlflow_is_taken_out(platform: Platform) -> None:
    platform.catalog.add_audit(action="promote", model_name="retroln", version=2, reviewer="r", comment="c")
    withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    withdraw.withdraw(platform.settings, "PAT-B", **WORDS)
    registry = platform.workspace.registry
    assert [registry.tags(version)[withdraw.VERSION_TAG] for version in (1, 2)] == ["2", "2"]
    found = holdings.survey(platform.settings, "PAT-A")
    assert [(v.version, v.is_champion) for v in found.versions] == [(2, True), (1, False)]
    assert registry.get_alias("champion") is None  # what people decide is left to people
    files = [path for path in Path(platform.settings.mlflow_artifacts).rglob("*") if path.is_file()]
    named = [path for path in files if any(word in path.read_bytes() for word in (b"PAT-A", b"B-CT"))]
    assert named == []
    (scores, _) = sorted(path for path in files if path.name == "scores.json")
    content = json.loads(scores.read_bytes())
    assert [case["patient_id"] for case in content["cases"]] == ["PAT-C", "PAT-D"]
    assert (content["withdrawn_rows"], content["summary"]) == (3, GOOD)


def test_a_dataset_with_the_patient_is_never_trained_on_again(platform: Platform) -> None:
    old = train.publish_dataset(platform.settings, SPEC)
    platform.catalog.require_trainable(old.version)
    withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    with pytest.raises(ConflictError, match="tombstoned"):
        platform.catalog.require_trainable(old.version)
    with pytest.raises(NotFoundError, match="manifest"):
        platform.workspace.store.get_bytes(old.manifest_key)
    assert "PAT-A" in {member.patient_id for member in platform.catalog.dataset(old.version).members}
    new = train.publish_dataset(platform.settings, SPEC)
    assert new.version != old.version
    assert {member.patient_id for member in new.members} == {"PAT-B", "PAT-C", "PAT-D"}
    platform.catalog.require_trainable(new.version)
    assert still_tested(old) - {"PAT-A"} <= still_tested(new)


def test_a_withdrawn_test_patient_leaves_the_locked_test_set(platform: Platform) -> None:
    old = train.publish_dataset(platform.settings, SPEC)
    (patient_id,) = still_tested(old)
    withdraw.withdraw(platform.settings, patient_id, **WORDS)
    new = train.publish_dataset(platform.settings, SPEC)
    assert train.test_hash(new) != train.test_hash(old)
    assert patient_id in platform.catalog.test_patients()
    # everybody else was trained on, and whoever was trained on is never tested on
    assert still_tested(new) == set()


def still_tested(record: DatasetRecord) -> set[str]:
    return {member.patient_id for member in record.members if member.role == "test"}


def test_the_next_runs_balance_and_later_deliveries_are_refused(platform: Platform) -> None:
    withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    platform.deliver("A-CT3", "PAT-A", 60)
    platform.deliver("A-CT1", "PAT-A", 70)
    before = platform.contents()
    for _ in range(2):
        outcomes = {one.case_id: one for one in platform.ingest()}
        refused = {case for case, one in outcomes.items() if one.reason == "withdrawn"}
        assert refused == {"A-CT1", "A-CT2", "A-CT3"}
        assert {outcomes[case].outcome for case in refused} == {Outcome.QUARANTINED}
        assert {outcomes[case].outcome for case in set(outcomes) - refused} == {Outcome.SKIPPED}
    assert platform.contents() == before
    assert platform.prepare() == Accounting(3, 0, 3, 0, 0)
    assert len(platform.catalog.scans_to_infer("retroln", 9)) == 3
    assert platform.catalog.count_inferred("retroln", 1) == 3
    held = platform.catalog.current_scan("A-CT3")
    assert held is not None
    assert (held.state, held.reason, held.ct_key) == (ScanState.QUARANTINED, "withdrawn", None)
    withdraw.withdraw(platform.settings, "PAT-A", reason="again", by="Dr B")
    assert tombstones(platform) == [*GONE, ("A-CT3", 1, ScanState.WITHDRAWN)]
    record = platform.catalog.withdrawal_of("PAT-A")
    assert record is not None
    assert record.by == "Dr A"


def test_the_case_id_of_a_withdrawn_patient_is_not_given_to_another(platform: Platform) -> None:
    withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    entry = next(one for one in ingest.list_entries(platform.settings) if one.case_id == "B-CT1")
    moved = ingest.CaseEntry("A-CT1", "PAT-B", entry.ct)
    outcome = ingest.ingest_case(platform.settings, platform.catalog.begin_run("ingest", {}), moved)
    assert (outcome.outcome, outcome.reason) == (Outcome.QUARANTINED, "withdrawn")
    assert tombstones(platform) == GONE


@pytest.mark.parametrize("stage", ["objects", "rows", "mlflow"])
def test_a_withdrawal_cut_off_is_finished_by_the_next_call(
    platform: Platform, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, store = platform.contents(), type(platform.workspace.store)
    delete: Callable[..., None] = store.delete
    calls = []

    def third_fails(self: Any, key: str) -> None:
        calls.append(key)
        if len(calls) == 3:
            raise UnavailableError("the store went away")
        delete(self, key)

    def away(*_: object) -> None:
        raise UnavailableError("went away")

    place = {
        "objects": (store, "delete", third_fails),
        "rows": (Catalog, "empty_withdrawn", away),
        "mlflow": (withdraw.traces, "redact", away),
    }[stage]
    with monkeypatch.context() as patch:
        patch.setattr(*place)
        with pytest.raises(UnavailableError, match="away"):
            withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    # already now nobody works on the patient
    assert platform.catalog.scans_to_prepare() == []
    assert {s.patient_id for s, _ in platform.catalog.labelled_prepared()} == {"PAT-B", "PAT-C", "PAT-D"}
    withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    require_gone(platform, before)
    noted = [(item.kind, item.name) for item in platform.catalog.withdrawn_items("PAT-A")]
    assert len(noted) == len(set(noted))
    assert {name for kind, name in noted if kind == "object"} == set(before) - set(platform.contents())
    assert holdings.survey(platform.settings, "PAT-A").traces == ()


def test_a_scan_in_a_workers_hands_is_not_withdrawn(platform: Platform) -> None:
    before, rows = platform.contents(), platform.rows()
    scan = platform.catalog.current_scan("A-CT2")
    assert scan is not None
    assert platform.catalog.claim(scan.scan_id, "worker-7", 60.0)
    with pytest.raises(ConflictError, match=r"A-CT2.*worker-7 until"):
        withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    assert [claim.owner for claim in platform.catalog.claims()] == ["worker-7"]
    platform.catalog.release(scan.scan_id, "worker-7")
    assert (platform.contents(), platform.rows()) == (before, rows)
    withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    require_gone(platform, before)


@pytest.mark.parametrize("case_id", ["A-CT1", "A-CT4"])
def test_what_was_being_taken_in_meanwhile_is_taken_back(
    platform: Platform, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The withdrawal comes when the bytes are stored and the scan, known or new, is not recorded yet."""
    before, add_scan, stored = platform.contents(), Catalog.add_scan, []
    platform.deliver(case_id, "PAT-A", 80)

    def late(self: Catalog, draft: ScanDraft, run_id: int | None, **how: int) -> ScanRecord:
        withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
        platform.workspace.store.put_bytes(b"written just after", str(draft.ct_key))
        stored.append(draft.ct_key)
        return add_scan(self, draft, run_id, **how)

    monkeypatch.setattr(Catalog, "add_scan", late)
    entry = next(one for one in ingest.list_entries(platform.settings) if one.case_id == case_id)
    outcome = ingest.ingest_case(platform.settings, platform.catalog.begin_run("ingest", {}), entry)
    assert (outcome.outcome, outcome.reason) == (Outcome.QUARANTINED, "withdrawn")
    assert len(stored) == 1
    assert stored[0] in {item.name for item in platform.catalog.withdrawn_items("PAT-A")}
    assert tombstones(platform) == GONE
    assert {scan.ct_key for scan in platform.catalog.scans_of_patient("PAT-A")} == {None}
    assert not [key for key in platform.contents() if "A-CT" in key]
    assert {key for key in before if "B-CT1" in key} <= set(platform.contents())


def test_another_patient_who_had_the_case_id_keeps_everything(platform: Platform) -> None:
    """Case X came under PAT-A once, and has been PAT-B's since somebody mended the listing."""
    catalog, store = platform.catalog, platform.workspace.store
    draft = ScanDraft(
        case_id="X", patient_id="PAT-A", source_uri={}, source_fingerprint="f", source_sha256="a" * 64
    )
    store.put_bytes(b"of A", f"scans/X/{'a' * 16}/ct.nii.gz")
    store.put_bytes(b"crop of A", f"crops/X/{'a' * 16}-{'0' * 16}/ct.nii.gz")
    catalog.add_scan(ScanDraft(**{**vars(draft), "ct_key": "k"}), None)
    kept = {f"scans/X/{'b' * 16}/ct.nii.gz", f"crops/X/{'b' * 16}-{'0' * 16}/ct.nii.gz"}
    kept |= {f"predictions/retroln-v1/X/{'b' * 16}/labels.nii.gz"}
    for key in kept:
        store.put_bytes(b"of B", key)
    other = {"patient_id": "PAT-B", "source_sha256": "b" * 64, "ct_key": "k", "source_fingerprint": "g"}
    catalog.add_scan(ScanDraft(**{**vars(draft), **other}), None)
    withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    assert {key for key in platform.contents() if "/X/" in key} == kept
    current = catalog.current_scan("X")
    assert current is not None
    assert (current.patient_id, current.state) == ("PAT-B", ScanState.INGESTED)


def test_the_command_shows_first_and_a_dry_run_changes_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retroln.cli.withdraw.Settings", lambda: platform.settings)
    platform.catalog.add_audit(action="promote", model_name="retroln", version=2, reviewer="r", comment="c")
    before, rows = platform.contents(), platform.rows()
    artifacts = {p: p.read_bytes() for p in (platform.folder / "mlartifacts").rglob("*") if p.is_file()}
    words = ["--reason", "letter", "--by", "Dr A"]
    shown = CliRunner().invoke(cli, ["withdraw", "PAT-A", "--dry-run"], catch_exceptions=False).output
    assert "dry run: nothing was changed" in shown
    for line in ("scans/A-CT1/", "crops/A-CT2/", "nodes: 3 deleted", "PAT-A/A-CT1/ct.nii.gz", "/scores.json"):
        assert line in shown
    assert "THE CHAMPION, version 2" in shown
    asked = CliRunner().invoke(cli, ["withdraw", "PAT-A", *words], input="n\n")
    assert asked.exit_code == 1
    assert CliRunner().invoke(cli, ["withdraw", "PAT-A", "--yes"]).exit_code == 2
    assert isinstance(CliRunner().invoke(cli, ["withdraw", "PAT", *words, "--yes"]).exception, NotFoundError)
    assert (platform.contents(), platform.rows()) == (before, rows)
    assert {path: path.read_bytes() for path in artifacts} == artifacts
    done = CliRunner().invoke(cli, ["withdraw", "PAT-A", *words], input="y\n", catch_exceptions=False)
    assert "patient PAT-A is withdrawn" in done.output
    require_gone(platform, before)


def test_a_withdrawal_says_why_and_by_whom_and_stays(platform: Platform) -> None:
    with pytest.raises(UserError, match="why and by whom"):
        withdraw.withdraw(platform.settings, "PAT-A", reason=" ", by="Dr A")
    withdraw.withdraw(platform.settings, "PAT-A", **WORDS)
    for statement in (
        "DELETE FROM withdrawals",
        "UPDATE withdrawals SET reason = ''",
        "DELETE FROM withdrawal_items",
    ):
        with (
            pytest.raises(ConflictError, match="append-only"),
            platform.catalog.database.writing() as session,
        ):
            session.execute(text(statement))
    with pytest.raises(WithdrawnError, match="took back consent"):
        platform.catalog.fail(platform.catalog.scans_of_patient("PAT-A")[-1].scan_id, "r", "d", None)
    with pytest.raises(ConflictError, match="not held back"):
        platform.catalog.requeue("A-CT1")
