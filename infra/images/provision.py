"""Buckets and MLflow's users on servers that run in containers: `python -m infra.images.provision`.

It makes what the local stack makes, by the same code. The addresses are those that RetroLN's settings
name. The keys are read from one file per secret in `SECRETS_FOLDER` (default /run/secrets). Repeating
it is harmless.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.stack.plan import MLFLOW_USERS, Stack
from infra.stack.provision import make_buckets, make_mlflow_users


@dataclass(frozen=True)
class Containers(Stack):
    """The same servers at other addresses; `home` is the folder of secrets."""

    @property
    def mlflow_url(self) -> str:
        """MLflow's address inside the network."""
        return os.environ["RETROLN_MLFLOW_URI"]

    @property
    def s3_url(self) -> str:
        """The S3 endpoint inside the network."""
        return os.environ["RETROLN_S3_ENDPOINT"]

    @cached_property
    def secrets(self) -> dict[str, Any]:
        """What the two calls below ask for: S3's administrator and MLflow's users."""
        return {
            "s3": {"admin": (self._read("s3_admin_access"), self._read("s3_admin_secret"))},
            "mlflow": {name: self._read(f"mlflow_{name}") for name in MLFLOW_USERS},
        }

    def _read(self, name: str) -> str:
        return (self.home / name).read_text("utf-8").strip()


def main() -> None:
    """Make what is missing."""
    servers = Containers(Path(os.environ.get("SECRETS_FOLDER", "/run/secrets")), 0)
    make_buckets(servers)
    make_mlflow_users(servers)


if __name__ == "__main__":
    main()
