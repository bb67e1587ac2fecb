"""What the stack consists of: places, ports, secrets, and the settings that each role is given."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from infra import seaweedfs
from infra.postgres import write_secret

HOME = Path("var/stack")
FIRST_PORT = 14200
_PREFECT, _MLFLOW, _POSTGRES, _BRIDGE, _S3 = 0, 1, 2, 3, 10
DATABASES = ("prefect", "mlflow", "retroln")
BUCKETS = ("source", "store", "mlflow")
S3_RIGHTS = {
    "admin": ("Admin", "Read", "Write", "List", "Tagging"),
    "delivery": ("Read:source", "Write:source", "List:source", "Tagging:source"),
    "retroln": ("Read:source", "List:source", "Read:store", "Write:store", "List:store", "Tagging:store"),
    "mlflow": ("Read:mlflow", "Write:mlflow", "List:mlflow", "Tagging:mlflow"),
}
MLFLOW_USERS = ("admin", "operator", "gpu", "reviewer")
TELEMETRY_OFF = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Stack:
    """One stack: its folder and its first port. Everything else follows and lies in the folder.

    Attributes:
        home: data, logs and secrets; private to the user who starts it.
        first_port: Prefect's; the others lie above it, the last at `first_port + 19`.
    """

    home: Path
    first_port: int

    @classmethod
    def here(cls) -> Stack:
        """The stack of `RETROLN_STACK_HOME` (default var/stack), on the ports it was made with."""
        home = Path(os.environ.get("RETROLN_STACK_HOME", HOME)).absolute()
        known = home / "stack.json"
        port = json.loads(known.read_text("utf-8"))["first_port"] if known.exists() else FIRST_PORT
        return cls(home, int(os.environ.get("RETROLN_STACK_PORT", port)))

    @property
    def prefect_url(self) -> str:
        """Prefect's pages; its API lies under /api."""
        return f"http://127.0.0.1:{self.first_port + _PREFECT}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's pages and API."""
        return f"http://127.0.0.1:{self.first_port + _MLFLOW}"

    @property
    def postgres_port(self) -> int:
        """PostgreSQL."""
        return self.first_port + _POSTGRES

    @property
    def bridge_port(self) -> int:
        """The optional webhook bridge."""
        return self.first_port + _BRIDGE

    @property
    def s3_port(self) -> int:
        """S3; SeaweedFS takes the nine ports above, too."""
        return self.first_port + _S3

    @property
    def s3_url(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.s3_port}"

    def s3(self, identity: str) -> seaweedfs.S3Server:
        """The S3 server as one identity sees it."""
        return seaweedfs.S3Server(self.s3_url, *self.secrets["s3"][identity])

    @cached_property
    def secrets(self) -> dict[str, Any]:
        """Every password and key, made on first use and kept in `secrets.json` (mode 600)."""
        path = self.home / "secrets.json"
        if not path.exists():
            write_secret(path, json.dumps(new_secrets(), indent=1))
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if "pseudonym" not in found:  # a stack that was made before there was one
            found["pseudonym"] = new_secrets()["pseudonym"]
            write_secret(path, json.dumps(found, indent=1))
        return found

    def database_url(self, name: str, driver: str) -> str:
        """URL of one of `DATABASES`, whose owner has the same name; no password in it."""
        return f"postgresql+{driver}://{name}@127.0.0.1:{self.postgres_port}/{name}"

    def client_environment(self, mlflow_user: str) -> dict[str, str]:
        """Settings of a worker or a shell that acts as `mlflow_user`; who ingests has the pseudonyms' key."""
        access, secret = self.secrets["s3"]["retroln"]
        ingests = {"RETROLN_PSEUDONYM_KEY": self.secrets["pseudonym"]} if mlflow_user == "operator" else {}
        return {
            **ingests,
            "RETROLN_SOURCE_URI": "s3://source",
            "RETROLN_STORE_URI": "s3://store",
            "RETROLN_S3_ENDPOINT": self.s3_url,
            "RETROLN_S3_ACCESS_KEY": access,
            "RETROLN_S3_SECRET_KEY": secret,
            "RETROLN_CATALOG_URL": self.database_url("retroln", "psycopg"),
            "RETROLN_CATALOG_PASSWORD": self.secrets["postgres"]["retroln"],
            "RETROLN_MLFLOW_URI": self.mlflow_url,
            "RETROLN_MLFLOW_USER": mlflow_user,
            "RETROLN_MLFLOW_PASSWORD": self.secrets["mlflow"][mlflow_user],
            "RETROLN_WORK_DIR": str(self.home / "work"),
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_API_AUTH_STRING": self.secrets["prefect"],
        }

    def write_files(self) -> None:
        """The private files: what settings find, what a GPU worker may know, what people log in with."""
        self.home.mkdir(parents=True, exist_ok=True)
        # PostgreSQL may have to run as another user, who must get through to its own folder
        self.home.chmod(0o711 if os.geteuid() == 0 else 0o700)
        (self.home / "stack.json").write_text(json.dumps({"first_port": self.first_port}), "utf-8")
        for file, user in (("retroln.env", "operator"), ("gpu.env", "gpu")):
            _write_env(self.home / file, self.client_environment(user), self._own_settings())
        _write_env(self.home / "logins.env", self._logins())
        keys = {name: tuple(pair) for name, pair in self.secrets["s3"].items()}
        seaweedfs.write_identities(self.home / "seaweedfs", keys, S3_RIGHTS)

    def _own_settings(self) -> str:
        """What the user wants every worker to have, from `platform.env` in the stack's folder."""
        path = self.home / "platform.env"
        return path.read_text("utf-8") if path.exists() else ""

    def _logins(self) -> dict[str, str]:
        """What people need: the pages of Prefect and MLflow, and the keys to deliver CT with."""
        access, secret = self.secrets["s3"]["delivery"]
        users = {
            f"MLFLOW_{name.upper()}_PASSWORD": self.secrets["mlflow"][name] for name in ("admin", "reviewer")
        }
        return {
            "PREFECT_LOGIN": self.secrets["prefect"],
            **users,
            "DELIVERY_S3_ENDPOINT": self.s3_url,
            "DELIVERY_S3_ACCESS_KEY": access,
            "DELIVERY_S3_SECRET_KEY": secret,
        }


def new_secrets() -> dict[str, Any]:
    """Random logins, keys and passwords for a stack."""
    return {
        "s3": {name: seaweedfs.new_keys() for name in S3_RIGHTS},
        "postgres": {name: secrets.token_hex(16) for name in DATABASES},
        "prefect": f"retroln:{secrets.token_hex(16)}",
        "mlflow": {name: secrets.token_hex(16) for name in MLFLOW_USERS},
        "mlflow_session": secrets.token_hex(32),
        "webhook": secrets.token_hex(32),
        "webhook_encryption": _fernet_key(),
        "pseudonym": secrets.token_hex(32),
    }


def _fernet_key() -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


def _write_env(path: Path, values: dict[str, str], more: str = "") -> None:
    lines = [f"{name}={value}\n" for name, value in values.items()]
    write_secret(path, "# made by `make stack`; keep it private\n" + "".join(lines) + more)
