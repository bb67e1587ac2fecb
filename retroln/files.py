"""Atomic writes and hashes: every file RetroLN leaves is whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from retroln.errors import Meaning, RefusedError, UnavailableError, UserError

SETTLED_NS = 2_000_000_000
"""Longest step of a file system's clock: two writes within it may leave the same times."""
_CHUNK_BYTES = 1 << 20
_hashes: dict[tuple[int, ...], str] = {}

_ELSEWHERE = "check the path, or name another"
_FULL = Meaning(
    RefusedError, "has no room left", "free space, or raise the quota or the limit on the size of files"
)
_READ_ONLY = Meaning(RefusedError, "is read-only", "choose a place that can be written")
_NO_RIGHT = Meaning(RefusedError, "refuses this user", "give the user the right, or choose another place")
_BROKEN = Meaning(RefusedError, "has a fault of its own", "look at the system's log, and check the disk")
_TOO_LONG = Meaning(RefusedError, "takes no name as long as this", "choose a shorter one")
_CIRCLE = Meaning(RefusedError, "has a link here that leads back to itself", "mend the link")
_NO_FOLDER = Meaning(UserError, "has a file where a folder is needed", _ELSEWHERE)
_NO_FILE = Meaning(UserError, "has a folder where a file is needed", _ELSEWHERE)
_NO_REGULAR_FILE = Meaning(UserError, "has a device or a pipe where a file is needed", _ELSEWHERE)
_IN_USE = Meaning(RefusedError, "has this in use, as a mount, say", "choose another place")
_AWAY = Meaning(UnavailableError, "is away", "check the network file system, then try again")
_BY_ERRNO = {
    errno.EACCES: _NO_RIGHT,
    errno.EBUSY: _IN_USE,
    errno.EDQUOT: _FULL,
    errno.EEXIST: _NO_FOLDER,
    errno.EFBIG: _FULL,
    errno.EHOSTDOWN: _AWAY,
    errno.EHOSTUNREACH: _AWAY,
    errno.EIO: _BROKEN,
    errno.EISDIR: _NO_FILE,
    errno.ELOOP: _CIRCLE,
    errno.ENAMETOOLONG: _TOO_LONG,
    errno.ENOSPC: _FULL,
    errno.ENOTCONN: _AWAY,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _READ_ONLY,
    errno.ESTALE: _AWAY,
    errno.ETIMEDOUT: _AWAY,
    errno.EUCLEAN: _BROKEN,
}


def disk_refusal(error: OSError) -> UserError | None:
    """What the disk cannot do, or what is wrong with a place on it, and the fix; None for another error."""
    meaning, path = _BY_ERRNO.get(error.errno or 0), error.filename2 or error.filename
    return meaning.error("the disk", file=path, got=error.strerror) if meaning else None


@contextmanager
def naming_disk_refusals() -> Iterator[None]:
    """Raise `OSError` that tells of the disk as `UserError` of the kind that fits; decorates, too."""
    try:
        yield
    except OSError as error:
        if refusal := disk_refusal(error):
            raise refusal from error
        raise


@contextmanager
def partial_beside(target: Path) -> Iterator[Path]:
    """Yield a new, hidden and empty sibling of `target`, gone at the end if it was not moved away.

    Its mode is 0666 less the umask, as of any new file: `tempfile` makes 0600, whatever the umask. It keeps
    the target's extensions, because writers choose a format by name. The folder is made if it is missing.
    An error of the disk in the block names the target.
    """
    make_folder(target.parent)
    partial = target.with_name(f".partial-{secrets.token_hex(8)}{''.join(target.suffixes[-2:])}")
    try:
        with _no_place(target):
            partial.touch(exist_ok=False)
        with naming_full(target):
            yield partial
    except OSError as error:
        if str(error.filename) == str(partial):
            error.filename = str(target)
        raise
    finally:
        with suppress(OSError):  # the first error matters
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a `partial_beside` of `target` that replaces it when the block succeeds.

    Raises:
        OSError: of the disk; `naming_disk_refusals` gives it words.
        UserError: a device or a pipe is there, which a file would take the place of.
    """
    _require_replaceable(target)
    with partial_beside(target) as partial:
        yield partial
        partial.replace(target)


def require_writable(target: Path) -> None:
    """Raise what `atomic_path` would, before work that would be lost."""
    _require_replaceable(target)
    with partial_beside(target):
        pass


def require_no_input(output: Path, *inputs: Path | None) -> None:
    """Refuse an output that would take the place of what is read for it.

    Raises:
        UserError: `output` is one of the inputs, by whatever path.
    """
    for path in inputs:
        if path is not None and path.exists() and output.exists() and output.samefile(path):
            raise UserError(
                "the output would take the place of an input",
                file=output,
                expected="a place of its own",
                got=f"the same file as {path}",
                fix="name another output",
            )


def require_outside(output: Path, *inputs: Path | None) -> None:
    """Raise `UserError` if an output would lie in one of the inputs that are folders, by whatever path."""
    for path in inputs:
        if path and not path.is_file() and output.resolve().is_relative_to(path.resolve()):
            raise UserError(
                "results cannot go where the input comes from",
                file=output,
                expected="a place of its own",
                got=f"a place in {path}",
                fix="name another output",
            )


def _require_replaceable(target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        raise _NO_REGULAR_FILE.error("the disk", file=target)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless it is there."""
    with _no_place(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _no_place(path: Path) -> Iterator[None]:
    """What is not there cannot be made either: so says /proc, whose files only the kernel makes."""
    try:
        yield
    except FileNotFoundError as error:
        raise PermissionError(errno.EACCES, "nothing can be made here", str(path)) from error


@contextmanager
def naming_full(path: Path) -> Iterator[None]:
    """Let an error that says there is no room name this file: writing and flushing name none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and _BY_ERRNO.get(error.errno or 0) is _FULL:
            error.filename = str(path)
        raise


def ensure_file(path: Path) -> None:
    """Make an empty file, and its folder, unless it is there. SQLite would give it 0644 at most."""
    make_folder(path.parent)
    with suppress(FileExistsError):
        path.touch(exist_ok=False)


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target`, whole or not at all."""
    with atomic_path(target) as partial:
        partial.write_bytes(data)


def write_json(target: Path, content: Any) -> None:
    """Write `content` as sorted, indented JSON, whole or not at all; NaN is refused."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    write_bytes(target, (text + "\n").encode())


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again; perhaps it is not there, or not writable."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "retroln"
    try:
        return Path.home() / ".cache" / "retroln"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"retroln-{os.getuid()}"


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(content: Any) -> str:
    """Hex sha256 of the canonical JSON of `content` (sorted keys, no spaces)."""
    return sha256_bytes(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in constant memory."""
    with path.open("rb") as stream:
        return _sha256_stream(stream)


def sha256_unchanged(path: Path) -> str:
    """As `sha256_file`; a file that this process has hashed before, and nobody has written to, is not read.

    Device, inode, size and times tell. No program can set a ctime back. A file whose ctime is younger than
    `SETTLED_NS` is not remembered: a second write within one tick of the clock would not show.
    """
    with path.open("rb") as stream:
        state, is_settled = _state(stream), _is_settled(stream)
        if state in _hashes:
            return _hashes[state]
        found = _sha256_stream(stream)
        if is_settled and _state(stream) == state:
            _hashes[state] = found
        return found


def read_unchanged(path: Path) -> tuple[bytes, str]:
    """The bytes of a file and their sha256, by the rule of `sha256_unchanged`."""
    with path.open("rb") as stream:
        state, data = _state(stream), stream.read()
        known = _hashes.get(state) if _state(stream) == state else None
    return data, known or sha256_bytes(data)


def _sha256_stream(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _state(stream: IO[bytes]) -> tuple[int, ...]:
    """What changes when anybody writes to a file, or puts another one in its place."""
    facts = os.fstat(stream.fileno())
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _is_settled(stream: IO[bytes]) -> bool:
    return time.time_ns() - os.fstat(stream.fileno()).st_ctime_ns > SETTLED_NS
