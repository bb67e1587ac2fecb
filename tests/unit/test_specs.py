"""A field that is new, at the value of its absence, changes no hash; a default that changes does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

import numpy as np
import pytest
from pydantic import ValidationError

from retroln.anatomy import roi
from retroln.anatomy.totalseg_weights import Weights
from retroln.catalog.records import ScanRecord
from retroln.files import sha256_json, write_json
from retroln.imaging.geometry import Grid, VoxelBox
from retroln.nnunet import train
from retroln.nnunet.bundle import Contract
from retroln.nnunet.dataset import DATASET_NAME
from retroln.nnunet.environment import Folders
from retroln.settings import Hu, RoiSpec, TotalSegSpec, TrainSpec
from retroln.specs import Absent, Spec
from retroln.steps import landmarks_folder, promote, spine
from retroln.steps.crop_folder import CropTool
from retroln.steps.fold_store import spec_sha256

DEMO = {"profile": "demo", "folds": (0, 1), "epochs": 40, "device": "cpu", "stand_in": "trained on phantoms"}
RECORDED = {
    "cf9a18f26a2d6360275e46f6051b8b0beecea784d7895339d5312f479571396d": TrainSpec(),
    "4f61f76a0ec8bd3c7f699d9323c452f1c038edf8b725d463f73d7a8c984e6a53": TrainSpec(**DEMO),
    "5975f2448fceab6f4b0e4a7f40d7d1e19ae9302b10d88efb1190bf8c20851682": RoiSpec(),
    "5f9ed80f9b075a1295ac7c31fd0d0e5d3336cdb2c89bfb359c37ae948e1c7a55": RoiSpec(lateral_mm=170),
    "d78b3a7707a9cf92948a9c48512a52bc44a4e682a4fa162207ee4e8287852b54": Hu(),
    "fc6f1031b01c528bb995726958032f2f7f9de9c1c97d692076ad37725e02bef2": Hu(low=-200, high=300),
    "bfc3ae60afcdd54ad1837ec27f13be92f059c90f1531b3db33b9e29958162a18": TotalSegSpec(),
    "512ce04ef33d9969fe46f01185398fcb83994ebcd5ad9d351ba8edcc4fdb5bb2": TotalSegSpec(
        quality="fast", ribs=True
    ),
}
"""What was made is looked up by these hashes: one that changes makes everything anew."""


@pytest.mark.parametrize(("sha256", "spec"), RECORDED.items(), ids=lambda item: str(item)[:40])
def test_what_was_recorded_is_found_again(sha256: str, spec: Spec) -> None:
    assert sha256_json(spec.recorded()) == sha256, (
        "a field that is new needs `Annotated[..., Absent(value)]`; a default that changes makes all anew"
    )


def with_mode(spec: type[Spec], default: str = "plain") -> Any:
    """A later version of `spec`, with a field that it did not have; absent, it says "plain"."""

    class Later(spec):  # type: ignore[misc, valid-type]
        mode: Annotated[str, Absent("plain")] = default

    return Later


def request_of(spec: TrainSpec, folder: Path) -> dict[str, Any]:
    for name in ("dataset.json", "dataset_fingerprint.json", "splits_final.json", "plans.json"):
        write_json(folder / "preprocessed" / DATASET_NAME / name, {})
    folders = Folders(folder / "raw", folder / "preprocessed", folder / "results")
    return train._request(folders, "plans", 0, spec)


def region_of(spec: RoiSpec) -> dict[str, Any]:
    grid, box = Grid((4, 4, 4), np.eye(4)), VoxelBox((0, 0, 0), (2, 2, 2))
    return roi.to_json(roi.Roi(box, box, (), grid, grid, spec, "l2"))


def labels_key(spec: TotalSegSpec) -> str:
    scan = cast(ScanRecord, SimpleNamespace(case_id="CASE", source_sha256="0" * 64))
    return spine._key(spec, scan, cast(Weights, SimpleNamespace(sha256="1" * 64)))


def networks_of(spec: TotalSegSpec, patch: pytest.MonkeyPatch) -> str:
    patch.setattr(landmarks_folder, "_settings", lambda *_: SimpleNamespace(totalseg=spec))
    return landmarks_folder.networks("full")


def is_trained(spec: TrainSpec, tag: str, patch: pytest.MonkeyPatch) -> bool:
    """Whether a version that states `tag` as its spec is taken for one trained by `spec`."""
    tags = {promote.DATASET_TAG: "d", promote.SPEC_TAG: tag}
    registry = SimpleNamespace(versions=lambda: [SimpleNamespace(version=3, tags=tags)])
    patch.setattr(promote, "open_workspace", lambda _: SimpleNamespace(registry=registry))
    return promote.find_trained(None, spec, SimpleNamespace(version="d")) == 3  # type: ignore[arg-type]


def test_a_field_that_is_new_changes_nothing_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, cut, window = with_mode(TrainSpec), with_mode(RoiSpec), with_mode(Hu)
    segmented = with_mode(TotalSegSpec)
    assert spec_sha256(trained(**DEMO)) == spec_sha256(TrainSpec(**DEMO))
    assert request_of(trained(), tmp_path) == request_of(TrainSpec(), tmp_path)
    assert is_trained(trained(**DEMO), TrainSpec(**DEMO).model_dump_json(), monkeypatch)
    assert region_of(cut()) == region_of(RoiSpec())
    tools = CropTool(tmp_path, hu=window(), spec=cut()), CropTool(tmp_path)
    assert tools[0].options() == tools[1].options()
    assert labels_key(segmented(ribs=True)) == labels_key(TotalSegSpec(ribs=True))
    assert networks_of(segmented(), monkeypatch) == networks_of(TotalSegSpec(), monkeypatch)


def test_a_field_that_is_new_counts_as_soon_as_it_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"mode": "other"}
    assert spec_sha256(with_mode(TrainSpec)(**other)) != spec_sha256(TrainSpec())
    tag = TrainSpec().model_dump_json()
    assert not is_trained(with_mode(TrainSpec)(**other), tag, monkeypatch)
    assert region_of(with_mode(RoiSpec)(**other))["spec"]["mode"] == "other"
    plain = CropTool(tmp_path).options()
    assert CropTool(tmp_path, hu=with_mode(Hu)(**other)).options() != plain
    assert CropTool(tmp_path, spec=with_mode(RoiSpec)(**other)).options() != plain
    segmented = with_mode(TotalSegSpec)(**other)
    assert labels_key(segmented) != labels_key(TotalSegSpec())
    assert networks_of(segmented, monkeypatch) != networks_of(TotalSegSpec(), monkeypatch)


@pytest.mark.parametrize("tag", ["", "no json", "[]", "{}"])
def test_a_tag_that_states_no_spec_is_no_training(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_trained(TrainSpec(), tag, monkeypatch)


def test_a_default_that_changes_changes_the_hash_and_no_record() -> None:
    later = with_mode(RoiSpec, default="other")
    assert later().recorded() == {**RoiSpec().recorded(), "mode": "other"}
    assert later(mode="plain").recorded() == RoiSpec().recorded()
    assert later.of_record(RoiSpec().recorded()).mode == "plain"
    assert later.of_record(later().recorded()).mode == "other"


def test_a_record_of_a_later_version_is_not_taken_for_one_of_this() -> None:
    with pytest.raises(ValidationError, match="mode"):
        RoiSpec.of_record(with_mode(RoiSpec)(mode="other").recorded())
    for damaged in ([], None, "text"):
        with pytest.raises(ValidationError):
            RoiSpec.of_record(damaged)


def test_a_contract_is_read_as_the_record_that_it_is() -> None:
    content = Contract(hu=Hu(), roi=RoiSpec(lateral_mm=170)).model_dump()
    assert with_mode(Contract, default="other").of_record(content).mode == "plain"
    assert Contract.model_validate(content).roi == RoiSpec(lateral_mm=170)
    for name in ("hu", "roi"):
        with pytest.raises(ValidationError):
            Contract.model_validate({**content, name: {**content[name], "mode": "other"}})


def test_every_field_of_a_training_decides_the_weights_or_something_else() -> None:
    """A new one belongs into `_SPEC_FIELDS` if other weights come of it, else here."""
    split = {"folds", "n_folds", "test_fraction", "containment_min", "override_containment"}
    after = {"min_probability", "min_finding_mm3", "stand_in"}
    assert {*train._SPEC_FIELDS} == {*TrainSpec.model_fields} - split - after
