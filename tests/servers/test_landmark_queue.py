"""The queue of landmarks on PostgreSQL and a bucket: signed pictures, corrections, withdrawal."""

from __future__ import annotations

import re
import secrets
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from infra.servers import S3Server, make_catalog
from retroln.catalog.states import ScanState
from retroln.imaging import nifti
from retroln.imaging.phantom import Phantom, PhantomSpec, make_phantom, shifted_names
from retroln.settings import Settings
from retroln.steps import landmark_review, withdraw
from retroln.steps.words import Words
from retroln.steps.workspace import open_workspace
from retroln.storage.open import open_store
from tasks import held
from tests.way import embedded, ingest_and_prepare

WORDS = Words("Dr A", "seen")


@pytest.fixture
def platform(s3_server: S3Server, postgres_url: str, tmp_path: Path) -> Settings:
    """Servers of its own, with one phantom whose names are one level too low."""
    bucket = s3_server.make_bucket(f"b-{secrets.token_hex(6)}")
    settings = embedded(
        tmp_path,
        source_uri=f"{bucket}/source",
        store_uri=f"{bucket}/store",
        catalog_url=make_catalog(postgres_url, f"queue{secrets.token_hex(4)}"),
        s3_endpoint=s3_server.endpoint,
        s3_access_key=s3_server.access_key,
        s3_secret_key=s3_server.secret_key,
    )
    spec = PhantomSpec(7, (4.0, 4.0, 5.0), orientation="LPS", level_names=shifted_names(-1))
    _deliver(settings, make_phantom(spec), tmp_path)
    ingest_and_prepare(settings)
    return settings


def _deliver(settings: Settings, phantom: Phantom, folder: Path) -> None:
    source = open_store(settings.source_uri, settings)
    for name, volume in (("ct", phantom.ct), ("vertebrae", phantom.vertebrae)):
        nifti.write_source(folder / "made.nii.gz", volume)
        source.put_file(folder / "made.nii.gz", f"PAT/CASE/{name}.nii.gz")


def _link(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
    """The picture's address as a run's page shows it."""
    shown: list[str] = []
    monkeypatch.setattr(held, "show_text", lambda key, markdown, description: shown.append(markdown))
    held.show_held(settings, 2)  # run 1 was ingest
    (address,) = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", shown[0]))
    return address


def test_the_picture_opens_by_its_signed_link_until_the_patient_is_withdrawn(
    platform: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, phantom: Phantom
) -> None:
    address = _link(platform, monkeypatch)
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.read().startswith(b"\x89PNG")
    nifti.write_source(tmp_path / "mended.nii.gz", phantom.vertebrae)
    landmark_review.correct_by_map(platform, "CASE", WORDS, tmp_path / "mended.nii.gz", "totalseg-v2")
    assert ingest_and_prepare(platform)[1].done == 1
    catalog = open_workspace(platform).catalog
    scan = catalog.current_scan("CASE")
    assert scan is not None and scan.state is ScanState.PREPARED
    assert catalog.landmarks_of(scan.scan_id).findings == ("reviewed: the label map was corrected by Dr A",)
    withdraw.withdraw(platform, "PAT", reason="letter", by="Dr B")
    assert list(open_workspace(platform).store.list()) == []
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(address, timeout=60)
    assert [word.reviewer for word in catalog.landmark_reviews("CASE")] == ["Dr A"]
