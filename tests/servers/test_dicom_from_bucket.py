"""DICOM from a bucket into a bucket: a folder of objects and an archive, under pseudonyms."""

from __future__ import annotations

import secrets
from pathlib import Path

from infra.servers import S3Server
from retroln.catalog.accounting import Outcome
from retroln.settings import Settings
from retroln.steps.source import find
from retroln.steps.workspace import open_workspace
from retroln.storage.open import open_store
from tests.dicom_series import KEY, ct_array, lps_grid, series, write, zipped
from tests.way import embedded, ingest_all


def test_a_folder_and_an_archive_in_a_bucket(
    s3_server: S3Server, s3_settings: Settings, tmp_path: Path
) -> None:
    places = {
        f"{name}_uri": s3_server.make_bucket(f"b-{secrets.token_hex(6)}") for name in ("source", "store")
    }
    keys = {name: getattr(s3_settings, name) for name in ("s3_endpoint", "s3_access_key", "s3_secret_key")}
    settings = embedded(tmp_path, **places, **keys, identity="pseudonym", pseudonym_key=KEY)
    paths = write(tmp_path / "study", series(ct_array(), lps_grid()))
    zipped(tmp_path / "study", tmp_path / "study.zip")
    delivery = open_store(settings.source_uri, settings)
    for path in paths:
        delivery.put_file(path, f"Smith John/A/dicom/SMITH/{path.name}")
    delivery.put_file(tmp_path / "study.zip", "Smith John/B/ct.zip")
    found = ingest_all(settings)
    assert [outcome.outcome for outcome in found.values()] == [Outcome.DONE] * 2
    assert {outcome.outcome for outcome in ingest_all(settings).values()} == {Outcome.SKIPPED}
    assert sorted(find(settings, case)[0] for case in found) == ["Smith John/A/dicom/", "Smith John/B/ct.zip"]
    workspace = open_workspace(settings)
    scans = [workspace.catalog.current_scan(case) for case in found]
    volumes = [workspace.store.get_bytes(str(scan and scan.ct_key)) for scan in scans]
    assert volumes[0] == volumes[1]
    assert not [info.key for info in workspace.store.list() if "smith" in info.key.lower()]
