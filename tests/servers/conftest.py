"""Real servers, started once per session and only when a test asks."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.servers import (
    S3Server,
    make_catalog,
    make_database,
    start_postgres,
    start_prefect,
    start_seaweedfs,
)
from retroln.catalog.catalog import Catalog
from retroln.settings import Settings
from tests.servers.team import PREFECT_PAGE, Team

_number = count()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS that refuses wrong keys."""
    with start_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server; make a database of your own on it."""
    with start_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server that is shared: a test makes deployments of its own on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_API_DEFAULT_LIMIT", str(PREFECT_PAGE))
        with start_prefect(tmp_path_factory.mktemp("prefect")) as url:
            yield url


@pytest.fixture
def team(prefect_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    """Who uses that server: Prefect's client and RetroLN's own find it while the test runs."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_url)
    with temporary_settings({PREFECT_API_URL: prefect_url}), get_client(sync_client=True) as client:
        yield Team(client)


@pytest.fixture
def s3_settings(s3_server: S3Server) -> Settings:
    """Settings that reach the S3 server."""
    return Settings(
        s3_endpoint=s3_server.endpoint, s3_access_key=s3_server.access_key, s3_secret_key=s3_server.secret_key
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def new_catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a catalog that does not exist yet, in either database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/catalog.db"
    return make_database(request.getfixturevalue("postgres_url"), f"catalog{next(_number)}")


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty catalog in either database; a SQLite file makes itself when it is opened."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/catalog.db"
    return make_catalog(request.getfixturevalue("postgres_url"), f"catalog{next(_number)}")


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """An empty catalog."""
    opened = Catalog.open(catalog_url)
    yield opened
    opened.close()
