"""An object store in an S3 bucket, by boto3 (the only place that imports it)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from retroln.errors import (
    IntegrityError,
    MissingExtraError,
    NotFoundError,
    SettingsError,
    install_from_checkout,
)
from retroln.files import atomic_path, naming_disk_refusals, sha256_bytes, sha256_file
from retroln.settings import Settings
from retroln.storage import s3_refusals
from retroln.storage.base import ObjectInfo, already_there, not_found, refused_write, require_sha256
from retroln.storage.keys import is_hidden, safe_key, safe_prefix
from retroln.storage.s3_upload import send

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

Result = TypeVar("Result")

_CHUNK_BYTES = 1 << 20
_READ_ATTEMPTS = 4
_MISSING = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"412", "PreconditionFailed", "ConditionalRequestConflict"}


def open_s3(place: str, settings: Settings, *, read_only: bool = False) -> S3Store:
    """Open `bucket/prefix` with the endpoint and keys of `settings`; no request is made yet.

    Without keys in `settings` boto3 looks for its own.

    Raises:
        MissingExtraError: boto3 is not installed.
        SettingsError: endpoint or region cannot be one.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise MissingExtraError("s3:// needs boto3", fix=install_from_checkout("s3")) from error
    bucket, _, prefix = place.strip("/").partition("/")
    safe_prefix(prefix)
    config = Config(
        signature_version="s3v4",
        retries={"max_attempts": 5, "mode": "standard"},
        connect_timeout=10,
        read_timeout=60,
        # older servers store a trailing checksum as part of the object
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "addressing_style": "path" if settings.s3_endpoint else "auto",
            # by itself boto3 signs no body that goes over https with a Content-MD5
            "payload_signing_enabled": True,
        },
    )
    access, secret = settings.s3_access_key, settings.s3_secret_key
    connect = partial(
        boto3.session.Session().client,
        "s3",
        endpoint_url=settings.s3_endpoint,
        aws_access_key_id=access.get_secret_value() if access else None,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        region_name=settings.s3_region,
        config=config,
    )
    try:
        return S3Store(connect, bucket, prefix, read_only=read_only)
    except ValueError as error:  # boto3's word for an endpoint or region that cannot be one
        fix = "mend RETROLN_S3_ENDPOINT (http://host:port) or RETROLN_S3_REGION"
        raise SettingsError("the object store cannot have this address", got=str(error), fix=fix) from error


class S3Store:
    """Objects below `prefix` in `bucket`, their sha256 in the metadata; shared by threads."""

    def __init__(
        self, connect: Callable[[], S3Client], bucket: str, prefix: str = "", *, read_only: bool = False
    ) -> None:
        self._connect = connect
        self._connected: S3Client = connect()
        self._process = os.getpid()
        self._bucket = bucket
        self._start = f"{prefix}/" if prefix else ""
        self._read_only = read_only

    @property
    def uri(self) -> str:
        """s3://bucket or s3://bucket/prefix."""
        return f"s3://{self._bucket}/{self._start}".rstrip("/")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As `ObjectStore.list`; folder markers (keys ending in "/") are left out."""
        start = self._start + safe_prefix(prefix)
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
            for page in pages:
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self._start)
                    if not key.endswith("/") and not is_hidden(key):
                        yield ObjectInfo(key, entry["Size"], entry["ETag"].strip('"'))

    def stat(self, key: str) -> ObjectInfo:
        """As `ObjectStore.stat`."""
        with self._translated(key):
            head = self._client.head_object(Bucket=self._bucket, Key=self._full(key))
        return ObjectInfo(key, head["ContentLength"], head["ETag"].strip('"'), head["Metadata"].get("sha256"))

    @naming_disk_refusals()
    def get_file(self, key: str, path: Path) -> str:
        """As `ObjectStore.get_file`; a broken connection is tried again."""

        def fetch() -> str:
            with copy.open("wb") as target:
                return self._fetch(key, target)

        self._full(key)
        with atomic_path(path) as copy:
            return self._retried(key, fetch)

    @naming_disk_refusals()
    def put_file(self, path: Path, key: str, *, if_absent: bool = False) -> ObjectInfo:
        """As `ObjectStore.put_file`; large files travel in parts."""
        if not path.is_file():
            raise NotFoundError("no such file", file=path)
        return self._upload(key, sha256_file(path), if_absent, path.open("rb"))

    def get_bytes(self, key: str) -> bytes:
        """As `ObjectStore.get_bytes`."""
        buffer = BytesIO()

        def fetch() -> str:
            buffer.seek(0)
            buffer.truncate()
            return self._fetch(key, buffer)

        self._full(key)
        self._retried(key, fetch)
        return buffer.getvalue()

    def put_bytes(self, data: bytes, key: str, *, if_absent: bool = False) -> ObjectInfo:
        """As `ObjectStore.put_bytes`."""
        return self._upload(key, sha256_bytes(data), if_absent, BytesIO(data))

    def link(self, key: str, seconds: float) -> str:
        """As `ObjectStore.link`: whoever has the address may read this one object until it expires."""
        place = {"Bucket": self._bucket, "Key": self._full(key)}
        return str(self._client.generate_presigned_url("get_object", Params=place, ExpiresIn=int(seconds)))

    def delete(self, key: str) -> None:
        """As `ObjectStore.delete`."""
        full = self._full(key)
        if self._read_only:
            raise refused_write(self.uri, key)
        with self._translated(key):
            self._client.delete_object(Bucket=self._bucket, Key=full)

    @property
    def _client(self) -> S3Client:
        """A forked child connects anew instead of speaking over its parent's connections."""
        if self._process != os.getpid():
            self._connected, self._process = self._connect(), os.getpid()
        return self._connected

    def close(self) -> None:
        """Give the connections back; a server that stops waits for them."""
        self._client.close()

    def _full(self, key: str) -> str:
        return self._start + safe_key(key)

    def _fetch(self, key: str, target: IO[bytes]) -> str:
        found, recorded = self._read(key, target)
        return require_sha256(self.uri, key, recorded=recorded, found=found)

    def _read(self, key: str, target: IO[bytes]) -> tuple[str, str | None]:
        """Copy the bytes; return their sha256 and the recorded one."""
        reply = self._client.get_object(Bucket=self._bucket, Key=self._full(key))
        digest = hashlib.sha256()
        with closing(reply["Body"]) as body:
            for chunk in body.iter_chunks(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        return digest.hexdigest(), reply["Metadata"].get("sha256")

    def _retried(self, key: str, fetch: Callable[[], Result]) -> Result:
        """Bodies break after the reply has begun, where boto3's own retries no longer help."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for attempt in range(_READ_ATTEMPTS - 1):
            try:
                with self._translated(key, keep=(HTTPClientError, IncompleteReadError)):
                    return fetch()
            except (HTTPClientError, IncompleteReadError):
                time.sleep(0.2 * 2**attempt)
        with self._translated(key):
            return fetch()

    def _upload(self, key: str, sha256: str, if_absent: bool, stream: BufferedReader | BytesIO) -> ObjectInfo:
        with stream, self._translated(key):
            place = {"Bucket": self._bucket, "Key": self._full(key)}
            if self._read_only:
                raise refused_write(self.uri, key)
            condition = {"IfNoneMatch": "*"} if if_absent else {}
            size_bytes, etag = send(
                self._client, place, stream, metadata={"sha256": sha256}, condition=condition
            )
        return self._verified(ObjectInfo(key, size_bytes, etag, sha256))

    def _verified(self, sent: ObjectInfo) -> ObjectInfo:
        """Describe what is kept of what was sent; other bytes are removed, for their metadata vouch for them.

        The size, and an ETag that is the MD5, say it for the price of one HEAD. Where the ETag is none, as
        under SSE-KMS, the object is read. One with another sha256 is a later writer's, who looks after it.
        """
        kept = self.stat(sent.key)
        if kept == sent or kept.sha256 not in (None, sent.sha256):
            return kept
        with Path(os.devnull).open("wb") as nowhere:
            found, recorded = self._retried(sent.key, lambda: self._read(sent.key, nowhere))
        if found == sent.sha256 or recorded not in (None, sent.sha256):
            return kept
        with suppress(Exception):  # what was kept matters more
            self.delete(sent.key)
        raise IntegrityError(
            "the server kept other bytes than it was sent; the object is removed",
            file=f"{self.uri}/{sent.key}",
            expected=f"{sent.size_bytes} bytes, sha256 {sent.sha256}",
            got=f"{kept.size_bytes} bytes, sha256 {found}",
            fix="use a server, and a proxy before it, that stores a body as it is sent",
        )

    @contextmanager
    def _translated(self, key: str, keep: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turn boto3's errors into RetroLN's, except the kinds in `keep`."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            yield
        except keep:
            raise
        except ClientError as error:
            raise self._refusal(error, key) from error
        except (BotoCoreError, ResponseParserError) as error:
            meaning = s3_refusals.of_failure(error)
            raise meaning.error("the object store", file=f"{self.uri}/{key}", got=str(error)) from error

    def _refusal(self, error: Any, key: str) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            return not_found(self.uri, key)
        if code in _TAKEN:
            return already_there(self.uri, key)
        meaning = s3_refusals.of_reply(error)
        return meaning.error("the object store", file=f"{self.uri}/{key}", got=str(error))
