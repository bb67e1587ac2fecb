"""From a URI to an object store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from retroln.errors import SettingsError
from retroln.settings import Settings
from retroln.storage.base import ObjectStore
from retroln.storage.local import LocalStore


def open_store(uri: str, settings: Settings, *, read_only: bool = False) -> ObjectStore:
    """Open `file://folder` (relative to the working directory), `file:///folder` or `s3://bucket/prefix`.

    Args:
        uri: where the store is; nothing is created before the first put.
        settings: endpoint and keys for S3.
        read_only: refuse every write, and take objects as they are delivered. Sources are opened so:
            a folder that does not exist is then `NotFoundError`, not an empty store.

    Raises:
        SettingsError: the URI is of no known kind, or begins with a home folder that is not known.
        MissingExtraError: `s3://` without boto3.
    """
    scheme, separator, place = uri.partition("://")
    if not separator or scheme not in ("file", "s3") or not place.strip("/"):
        raise SettingsError(
            "not an object store's address",
            expected="file://folder, file:///folder or s3://bucket/prefix",
            got=repr(uri),
            fix="mend RETROLN_STORE_URI or RETROLN_SOURCE_URI",
        )
    if scheme == "file":
        return LocalStore(_folder(uri, unquote(place)), uri=uri, read_only=read_only)
    from retroln.storage.s3 import open_s3

    return open_s3(place, settings, read_only=read_only)


def _folder(uri: str, place: str) -> Path:
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            "the home folder is not known",
            expected="HOME, or a user of this system behind the ~",
            got=repr(uri),
            fix="write the whole path, or set HOME",
        ) from error
