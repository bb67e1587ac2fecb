"""Restore: a backup becomes a stack in an empty folder, with its servers down."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from infra import postgres
from infra.backup.manifest import verify
from infra.backup.parts import JOURNALS, require_empty, run_as_superuser
from infra.stack import programs, provision
from infra.stack.lifecycle import start_storage
from infra.stack.plan import DATABASES, Stack
from infra.stack.supervisor import Supervisor


def restore(stack: Stack, folder: Path, *, tell: Callable[[str], None]) -> None:
    """Bring a backup back into an empty stack folder and leave the servers down.

    Raises:
        RuntimeError: the backup is not whole or damaged, or the stack's folder is not empty.
        UserError: the backup is a newer RetroLN's.
    """
    tell("checking every file of the backup")
    verify(folder)
    require_empty(stack.home)
    stack.home.mkdir(parents=True, exist_ok=True)
    os.umask(0o077)  # after the folders above, which PostgreSQL's user must get through
    _restore_files(stack, folder)
    stack.write_files()
    supervisor = Supervisor(stack.home)
    superuser = postgres.init_cluster(stack.home / "postgres")
    supervisor.configure(programs.servers(stack))
    try:
        start_storage(stack, supervisor, superuser)
        tell("databases")
        for name in DATABASES:
            command = ["pg_restore", "--exit-on-error", "--single-transaction", "--dbname", name]
            run_as_superuser(stack, [*command, str(folder / "databases" / f"{name}.dump")])
        provision.upgrade_catalog(stack)
        tell("objects")
        _restore_objects(stack, folder)
    finally:
        supervisor.shut_down()


def _restore_files(stack: Stack, folder: Path) -> None:
    for path in (folder / "private").iterdir():
        shutil.copyfile(path, stack.home / path.name)
    if (folder / "journals").is_dir():
        shutil.copytree(folder / "journals", stack.home / JOURNALS, copy_function=shutil.copyfile)


def _restore_objects(stack: Stack, folder: Path) -> None:
    with closing(stack.s3("admin").client()) as client:
        for index in (folder / "objects").glob("*.jsonl"):
            for entry in map(json.loads, index.read_text("utf-8").splitlines()):
                path = folder / "objects" / entry["sha256"][:2] / entry["sha256"]
                extra = {"Metadata": entry["metadata"]}
                if entry["content_type"]:
                    extra["ContentType"] = entry["content_type"]
                client.upload_file(str(path), index.stem, entry["key"], ExtraArgs=extra)
                _require_kept(client, index.stem, entry)


def _require_kept(client: Any, bucket: str, entry: dict[str, Any]) -> None:
    """Read an object back: a restore is rare, and often the last copy is at stake."""
    with closing(client.get_object(Bucket=bucket, Key=entry["key"])["Body"]) as body:
        if hashlib.file_digest(body, "sha256").hexdigest() != entry["sha256"]:
            raise RuntimeError(f"s3://{bucket}/{entry['key']}: the server kept other bytes than it was sent")
