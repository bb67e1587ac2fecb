"""`retroln doctor --servers` against real servers: well, wrong password, wrong bucket, server away."""

import secrets
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.servers import S3Server, make_catalog, make_database
from retroln.catalog.revisions import WANTED
from retroln.cli.doctor import doctor
from retroln.settings import Settings
from retroln.tracking.connection import Connection
from tests.servers.test_tracking import MlflowServer

Doctor = Callable[..., Result]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_server: S3Server) -> Doctor:
    """`retroln doctor --servers` with buckets of its own, after the variables given."""
    source, store = (s3_server.make_bucket(f"{name}-{secrets.token_hex(6)}") for name in ("in", "out"))
    variables = {
        "RETROLN_SOURCE_URI": source,
        "RETROLN_STORE_URI": f"{store}/below",
        "RETROLN_S3_ENDPOINT": s3_server.endpoint,
        "RETROLN_S3_ACCESS_KEY": s3_server.access_key,
        "RETROLN_S3_SECRET_KEY": s3_server.secret_key,
        "RETROLN_CATALOG_URL": f"sqlite:///{tmp_path}/catalog.db",
        "RETROLN_MLFLOW_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }

    def run(**changed: str) -> Result:
        for name, value in {**variables, **changed}.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(doctor, ["--servers"])

    return run


def _line(found: Result, name: str) -> str:
    (line,) = [line for line in found.stdout.splitlines() if line[5:].startswith(f"{name}: ")]
    return line


def _require_broken(found: Result, name: str, *mentions: str) -> None:
    assert found.exit_code == 11, found.stdout
    line = _line(found, name)
    assert line.startswith("FIX "), line
    for text in mentions:
        assert text in line
    assert line.count("; fix: ") == 1


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_all_is_well_and_nothing_is_left_behind(ask: Doctor, s3_server: S3Server) -> None:
    found = ask()
    assert found.exit_code == 0, found.stdout
    assert "nothing was delivered yet" in _line(found, "source")
    assert "put, get and delete work" in _line(found, "store")
    assert "PREFECT_API_URL is not set" in _line(found, "prefect server")
    bucket = _line(found, "store").split("s3://")[1].split("/")[0]
    with closing(s3_server.client()) as client:
        assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_wrong_key_names_the_keys(ask: Doctor) -> None:
    found = ask(RETROLN_S3_SECRET_KEY="not-the-secret")
    for name in ("source", "store"):
        _require_broken(found, name, "refused", "RETROLN_S3_ACCESS_KEY, RETROLN_S3_SECRET_KEY")
    assert "not-the-secret" not in found.stdout


def test_a_missing_bucket_names_its_variable(ask: Doctor) -> None:
    found = ask(RETROLN_STORE_URI="s3://nowhere-at-all")
    _require_broken(found, "store", "no such bucket", "create it", "RETROLN_STORE_URI")
    assert _line(found, "source").startswith("ok")


def test_a_store_that_is_away_names_the_endpoint(ask: Doctor) -> None:
    found = ask(RETROLN_S3_ENDPOINT=f"http://127.0.0.1:{_closed_port()}")
    _require_broken(found, "store", "does not answer", "RETROLN_S3_ENDPOINT")


class TestCatalog:
    def test_it_is_migrated_and_its_clock_is_read(self, ask: Doctor, postgres_url: str) -> None:
        found = ask(RETROLN_CATALOG_URL=make_catalog(postgres_url, "doctor_well"))
        assert found.exit_code == 0, found.stdout
        assert f"migrated to {WANTED}," in _line(found, "catalog")
        assert " s from here" in _line(found, "catalog")

    def test_tables_that_are_not_there_name_the_command(self, ask: Doctor, postgres_url: str) -> None:
        found = ask(RETROLN_CATALOG_URL=make_database(postgres_url, "doctor_empty"))
        _require_broken(found, "catalog", "holds no catalog yet", "`retroln catalog upgrade`")

    def test_a_wrong_password_is_not_shown(self, ask: Doctor, postgres_url: str) -> None:
        host = postgres_url.rpartition("@")[2]
        found = ask(
            RETROLN_CATALOG_URL=f"postgresql+psycopg://app@{host}", RETROLN_CATALOG_PASSWORD="guessed"
        )
        _require_broken(found, "catalog", "refused the login", "RETROLN_CATALOG_PASSWORD")
        assert "guessed" not in found.stdout

    def test_a_server_that_is_away(self, ask: Doctor) -> None:
        found = ask(RETROLN_CATALOG_URL=f"postgresql://app:x@127.0.0.1:{_closed_port()}/app")
        _require_broken(found, "catalog", "does not answer", "RETROLN_CATALOG_URL")


def test_mlflow_and_prefect_that_are_away(ask: Doctor) -> None:
    url = f"http://127.0.0.1:{_closed_port()}"
    found = ask(RETROLN_MLFLOW_URI=url, PREFECT_API_URL=f"{url}/api")
    _require_broken(found, "mlflow registry", "does not answer", "check that MLflow", "RETROLN_MLFLOW_URI")
    _require_broken(found, "prefect server", "does not answer", "PREFECT_API_URL ends in /api")


def test_an_experiment_that_was_deleted_names_the_way_back(ask: Doctor, tmp_path: Path) -> None:
    connection = Connection.of(Settings(mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    connection.client.delete_experiment(connection.experiment_id)
    _require_broken(ask(), "mlflow registry", "was deleted", "mlflow experiments restore -x 1")


def test_a_password_in_an_address_is_not_shown(ask: Doctor) -> None:
    host = f"127.0.0.1:{_closed_port()}"
    found = ask(
        RETROLN_MLFLOW_URI=f"http://me:hidden@{host}",
        RETROLN_CATALOG_URL=f"postgresql://me:hidden@{host}/x",
        PREFECT_API_URL=f"http://me:hidden@{host}/api",
    )
    _require_broken(found, "mlflow registry", host)
    _require_broken(found, "catalog", host)
    _require_broken(found, "prefect server", host)
    assert "hidden" not in found.stdout


def test_an_mlflow_without_logins_says_so(ask: Doctor, tmp_path: Path) -> None:
    server = MlflowServer(tmp_path)
    server.start()
    try:
        found = ask(RETROLN_MLFLOW_URI=server.uri)
    finally:
        server.stop()
    assert found.exit_code == 0, found.stdout
    assert "the server knows no logins, 0 versions of retroln, may move aliases" in found.stdout


def test_workers_without_a_prefect_server_are_a_contradiction(ask: Doctor) -> None:
    found = ask(RETROLN_FAN_OUT="workers")
    _require_broken(found, "prefect server", "PREFECT_API_URL is not set", "set PREFECT_API_URL")


def test_an_unusable_setting_is_a_finding(ask: Doctor) -> None:
    found = ask(RETROLN_PROCESSES="many")
    _require_broken(found, "settings", "RETROLN_PROCESSES cannot be used", "correct RETROLN_PROCESSES")
