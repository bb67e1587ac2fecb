"""Sending bytes to S3 so that the server can tell whether they arrived, in words that all servers understand.

Every body goes with its MD5 (`Content-MD5`) and, by the client's settings, signed with its sha256: a server
refuses one that was altered before anybody sees it. Both are as old as signature version 4, and neither
changes the body, as checksums in trailers do.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_ONE_PUT_BYTES = 64 << 20  # streamed in one request, as most CT are; what is larger travels in parts
_PART_BYTES = 16 << 20  # held in memory; 10,000, S3's limit, reach 160 GB


def send(
    client: S3Client,
    place: Mapping[str, str],
    stream: BufferedReader | BytesIO,
    *,
    metadata: Mapping[str, str],
    condition: Mapping[str, str],
) -> tuple[int, str]:
    """Put what `stream` holds from its start.

    Args:
        place: `Bucket` and `Key`.
        condition: `IfNoneMatch`, or nothing.

    Returns:
        Size in bytes, and the ETag of these bytes on a server that makes it from their MD5.
    """
    size_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    put = _put_parts if size_bytes > _ONE_PUT_BYTES else _put_whole
    return size_bytes, put(client, place, stream, metadata, condition)


def _put_whole(
    client: S3Client,
    place: Mapping[str, Any],
    stream: BufferedReader | BytesIO,
    metadata: Mapping[str, str],
    condition: Mapping[str, Any],
) -> str:
    digest = hashlib.file_digest(stream, _md5)
    stream.seek(0)
    client.put_object(**place, Metadata=metadata, Body=stream, ContentMD5=_in_base64(digest), **condition)
    return digest.hexdigest()


def _put_parts(
    client: S3Client,
    place: Mapping[str, Any],
    stream: BufferedReader | BytesIO,
    metadata: Mapping[str, str],
    condition: Mapping[str, Any],
) -> str:
    """A part at a time; boto3's own transfer knows no conditional put."""
    upload = client.create_multipart_upload(**place, Metadata=metadata)
    target: dict[str, Any] = {**place, "UploadId": upload["UploadId"]}
    parts: list[Any] = []
    digests = b""
    try:
        while chunk := stream.read(_PART_BYTES):
            digest, number = _md5(chunk), len(parts) + 1
            sent = client.upload_part(**target, PartNumber=number, Body=chunk, ContentMD5=_in_base64(digest))
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
            digests += digest.digest()
        client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts}, **condition)
    except BaseException:
        with suppress(Exception):  # the first error matters; a bucket rule clears what is left
            client.abort_multipart_upload(**target)
        raise
    return f"{_md5(digests).hexdigest()}-{len(parts)}"


def _md5(data: bytes = b"") -> hashlib._Hash:
    """S3's own checksum; a machine that keeps to FIPS allows it for this use."""
    return hashlib.md5(data, usedforsecurity=False)


def _in_base64(digest: hashlib._Hash) -> str:
    return b64encode(digest.digest()).decode()
