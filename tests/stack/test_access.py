"""Who gets in: loopback alone, every login required, no role with more rights than its work needs."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.seaweedfs import S3Server
from infra.stack.plan import Stack
from retroln.errors import SettingsError, UnavailableError
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace
from tests.stack.driver import Platform, descendants

_LISTENING = "0A"
_LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def _addresses_listened_on(pids: set[int]) -> set[str]:
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink()) if descriptor.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


def test_everything_listens_on_loopback_alone(platform: Platform) -> None:
    roots = {int(info["pid"]) for info in platform.supervisor.states().values() if info["pid"]}
    pids = roots | {child for root in roots for child in descendants(root)}
    listened = _addresses_listened_on(pids)
    assert listened
    assert listened <= _LOOPBACK


@pytest.mark.parametrize("login", [None, ("retroln", "wrong")])
def test_prefect_refuses_a_wrong_login(stack: Stack, login: tuple[str, str] | None) -> None:
    assert httpx.post(f"{stack.prefect_url}/api/flows/count", json={}, auth=login).status_code == 401
    right = tuple(stack.secrets["prefect"].split(":"))
    assert httpx.post(f"{stack.prefect_url}/api/flows/count", json={}, auth=right).status_code == 200


@pytest.mark.parametrize("login", [None, ("operator", "wrong")])
def test_mlflow_refuses_a_wrong_login(stack: Stack, login: tuple[str, str] | None) -> None:
    address = f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/search"
    assert httpx.get(address, auth=login).status_code == 401
    assert httpx.get(address, auth=("operator", stack.secrets["mlflow"]["operator"])).status_code == 200


def test_s3_refuses_wrong_keys_and_gives_each_its_own_bucket(stack: Stack) -> None:
    from botocore.exceptions import ClientError

    def put(server: S3Server, bucket: str) -> Any:
        with closing(server.client()) as client:
            return client.put_object(Bucket=bucket, Key="probe/x", Body=b"x")

    access, _ = stack.secrets["s3"]["retroln"]
    for server, bucket in (
        (S3Server(stack.s3_url, access, "wrong"), "store"),
        (S3Server(stack.s3_url, "nobody", "wrong"), "store"),
        (stack.s3("retroln"), "source"),
        (stack.s3("retroln"), "mlflow"),
        (stack.s3("delivery"), "store"),
    ):
        with pytest.raises(ClientError, match=r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch"):
            put(server, bucket)
    put(stack.s3("retroln"), "store")


def test_the_catalog_refuses_a_wrong_password(platform: Platform) -> None:
    wrong = platform.settings.model_copy(update={"catalog_password": "wrong"})
    wrong = Settings.model_validate(wrong.model_dump())
    with pytest.raises(SettingsError, match="RETROLN_CATALOG_PASSWORD"):
        open_workspace(wrong)


def test_each_database_lets_only_its_owner_in(stack: Stack) -> None:
    import psycopg

    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(
            host="127.0.0.1",
            port=stack.postgres_port,
            user="retroln",
            password=stack.secrets["postgres"]["retroln"],
            dbname="mlflow",
        )


def test_the_inference_worker_cannot_move_aliases(stack: Stack) -> None:
    """It asks with the login that its environment file holds, in a process of its own."""
    program = (
        "from retroln.settings import Settings\n"
        "from retroln.tracking.connection import Connection\n"
        "client = Connection.of(Settings()).client\n"
        "print(client.get_registered_model('retroln').name)\n"
        "client.set_registered_model_alias('retroln', 'champion', '1')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={"RETROLN_ENV_FILE": str(stack.home / "gpu.env"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "retroln"
    assert "Permission denied" in done.stderr
    assert "operator" not in (stack.home / "gpu.env").read_text()


def test_who_ingests_has_the_key_of_the_pseudonyms_and_nobody_else(stack: Stack) -> None:
    key = stack.secrets["pseudonym"]
    holders = {path.name for path in stack.home.glob("*.env") if key in path.read_text()}
    assert holders == {"retroln.env"}


def test_secrets_lie_in_private_files_alone(stack: Stack, platform: Platform) -> None:
    secrets = _all_strings(json.loads((stack.home / "secrets.json").read_text()))
    assert len(secrets) >= 15
    paths = [*stack.home.glob("*"), *(stack.home / "logs").glob("*")]
    holders = {path.name for path in paths if path.is_file() and _holds(path, secrets)}
    assert {"secrets.json", "retroln.env", "gpu.env", "logins.env"} <= holders
    for path in paths:
        if path.name in holders:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert path.parent == stack.home, f"a secret is in {path}"
    roots = [int(info["pid"]) for info in platform.supervisor.states().values() if info["pid"]]
    for pid in [*roots, *(child for root in roots for child in descendants(root))]:
        command = Path(f"/proc/{pid}/cmdline")
        shown = command.read_bytes() if command.exists() else b""
        assert not any(secret.encode() in shown for secret in secrets), shown
    deployments = Path("prefect.yaml").read_text()
    assert not any(secret in deployments for secret in secrets)


def _holds(path: Path, secrets: list[str]) -> bool:
    data = path.read_bytes()
    return any(secret.encode() in data for secret in secrets)


def _all_strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value.rpartition(":")[2]]
    pieces = value.values() if isinstance(value, dict) else value
    return [found for piece in pieces for found in _all_strings(piece)]


def test_parameters_and_variables_on_the_server_hold_no_secret(platform: Platform) -> None:
    secrets = _all_strings(platform.stack.secrets)
    deployments = platform.prefect.read_deployments()
    assert secrets and deployments
    for deployment in deployments:
        shown = deployment.model_dump_json()
        assert not any(secret in shown for secret in secrets), deployment.name


def test_a_store_that_is_away_is_said_to_be_away(platform: Platform) -> None:
    gone = platform.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})
    with pytest.raises(UnavailableError, match="RETROLN_S3_ENDPOINT"):
        open_workspace(gone).store.get_bytes("probe/x")
