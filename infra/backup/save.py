"""Save: stop what writes, copy databases, objects, secrets and waiting metrics, start again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from infra.backup.manifest import write_manifest
from infra.backup.parts import JOURNALS, PRIVATE, require_empty, run_as_superuser
from infra.stack.lifecycle import STORAGE, start_services
from infra.stack.plan import DATABASES, Stack
from infra.stack.supervisor import Supervisor, is_worker

_OWN_BUCKETS = ("store", "mlflow")
_CHUNK_BYTES = 1 << 20


def save(stack: Stack, folder: Path, *, source: bool = False, tell: Callable[[str], None]) -> None:
    """Back the running stack up into a new folder that its owner alone can read.

    Args:
        source: also the bucket of delivered CT, which others usually keep.

    Raises:
        RuntimeError: the stack does not run, the folder is not empty, or a stored object is damaged.
    """
    supervisor = Supervisor(stack.home)
    if not supervisor.is_running():
        raise RuntimeError(f"nothing runs in {stack.home}; start it with `make stack`")
    require_empty(folder)
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    tell("stopping what writes")
    with _quiet(stack, supervisor):
        tell("databases")
        _dump_databases(stack, folder)
        tell("objects")
        buckets = (*_OWN_BUCKETS, *(("source",) if source else ()))
        with closing(stack.s3("admin").client()) as client:
            for bucket in buckets:
                _save_bucket(client, bucket, folder)
        tell("secrets, settings and waiting metrics")
        _save_files(stack, folder)
        write_manifest(folder)
        tell("starting what was stopped")


@contextmanager
def _quiet(stack: Stack, supervisor: Supervisor) -> Iterator[None]:
    """Only PostgreSQL and SeaweedFS run in the block; afterwards runs again what ran before."""
    running = [
        name
        for name, info in supervisor.states().items()
        if info["statename"] in ("RUNNING", "STARTING") and name not in STORAGE
    ]
    workers = [name for name in running if is_worker(name)]
    servers = [name for name in running if name not in workers]
    try:
        for group in (workers, servers):  # workers first: they still have something to tell
            with ThreadPoolExecutor() as side_by_side:
                list(side_by_side.map(supervisor.stop, group))
        yield
    finally:
        start_services(stack, supervisor)
        supervisor.start(*workers)


def _dump_databases(stack: Stack, folder: Path) -> None:
    (folder / "databases").mkdir()
    for name in DATABASES:
        run_as_superuser(
            stack, ["pg_dump", "--format=custom", "--file", str(folder / "databases" / f"{name}.dump"), name]
        )


def _save_bucket(client: Any, bucket: str, folder: Path) -> None:
    """Each object under its hash, and a line for its key and metadata: any key fits, equal bytes lie once."""
    (folder / "objects").mkdir(exist_ok=True)
    with (folder / "objects" / f"{bucket}.jsonl").open("w", encoding="utf-8") as index:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", []):
                line = _save_object(client, bucket, entry["Key"], folder / "objects")
                index.write(json.dumps(line) + "\n")


def _save_object(client: Any, bucket: str, key: str, objects: Path) -> dict[str, Any]:
    reply = client.get_object(Bucket=bucket, Key=key)
    digest, partial = hashlib.sha256(), objects / ".partial"
    with closing(reply["Body"]) as body, partial.open("wb") as copy:
        for chunk in body.iter_chunks(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
    sha256 = digest.hexdigest()
    if reply["Metadata"].get("sha256", sha256) != sha256:
        partial.unlink()
        raise RuntimeError(f"s3://{bucket}/{key} is damaged: its bytes do not match its recorded sha256")
    target = objects / sha256[:2] / sha256
    target.parent.mkdir(exist_ok=True)
    partial.replace(target)
    return {
        "key": key,
        "sha256": sha256,
        "metadata": reply["Metadata"],
        "content_type": reply.get("ContentType"),
    }


def _save_files(stack: Stack, folder: Path) -> None:
    (folder / "private").mkdir()
    for name in PRIVATE:
        if (stack.home / name).exists():
            shutil.copyfile(stack.home / name, folder / "private" / name)
    if (stack.home / JOURNALS).is_dir():
        shutil.copytree(stack.home / JOURNALS, folder / "journals", copy_function=shutil.copyfile)
