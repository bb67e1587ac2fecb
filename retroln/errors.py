"""One error base, two kinds: what a user can mend (`UserError`) and bugs (everything else)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self


class RetroLNError(Exception):
    """Base of every error that RetroLN raises on purpose."""

    exit_code = 1


class LeaseError(RetroLNError):
    """A worker's claim on a scan was taken by another or given back for it: what it did does not count."""


class UserError(RetroLNError):
    """Something a person can mend. The message is one line: what, file, expected, got, fix.

    Args:
        what: the fact, e.g. "affine holds NaN".
        file: file or object key concerned.
        expected: what would have been accepted.
        got: what was found.
        fix: what the person can do about it.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        file: str | Path | None = None,
        expected: str | None = None,
        got: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.file, self.expected, self.got, self.fix = what, file, expected, got, fix
        named = {"expected": expected, "got": got, "fix": fix}
        parts = [f"{file}: {what}" if file else what]
        parts += [f"{name}: {value}" for name, value in named.items() if value]
        line = " ".join("; ".join(parts).splitlines())
        super().__init__(line.encode(errors="backslashreplace").decode())  # a file's name need not be text

    def reworded(self, **fields: object) -> Self:
        """The same error with other texts: any of what, file, expected, got, fix."""
        state = {**self.__dict__, **fields}
        return _rebuild(type(self), str(state["what"]), state)  # type: ignore[return-value]

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way back from a worker process with every field."""
        return _rebuild, (type(self), self.what, self.__dict__.copy())


def _rebuild(kind: type[UserError], what: str, state: dict[str, object]) -> UserError:
    error = kind.__new__(kind)
    named = {key: state[key] for key in ("file", "expected", "got", "fix")}
    UserError.__init__(error, what, **named)  # type: ignore[arg-type]
    error.__dict__.update(state)
    return error


class InputError(UserError):
    """A case's input cannot be used: the case is quarantined under `reason`, the run goes on.

    `reason` is a short stable code (snake case) that the catalog stores and the docs explain.
    """

    exit_code = 3

    def __init__(
        self,
        what: str,
        *,
        reason: str,
        file: str | Path | None = None,
        expected: str | None = None,
        got: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what, file=file, expected=expected, got=got, fix=fix)
        self.reason = reason


@contextmanager
def naming(file: str | Path, *, instead: bool = False) -> Iterator[None]:
    """Let an `InputError` that names no file name this one; with `instead`, also one that names another.

    For what is known by a better name outside: an object as delivered rather than its scratch copy.
    """
    try:
        yield
    except InputError as error:
        if error.file is not None and not instead:
            raise
        raise error.reworded(file=file) from error


class GeometryError(InputError):
    """Two grids that must agree do not, or an affine is unusable."""


class LandmarkError(InputError):
    """The vertebrae do not allow a trustworthy region; a person must look."""


class SettingsError(UserError):
    """A setting is missing or contradictory."""

    exit_code = 4


class MissingExtraError(UserError):
    """An optional part of RetroLN is not installed; `fix` names the extra."""

    exit_code = 5


def install_from_checkout(extra: str) -> str:
    """How to install an optional part: RetroLN is on no package index."""
    return f"in the checkout `pip install -c constraints.txt -e '.[{extra}]'`, or `make setup` for all"


class GateError(UserError):
    """A promotion or training gate refused."""

    exit_code = 6


class NotFoundError(UserError):
    """An object, a case, a model version or a file does not exist."""

    exit_code = 7


class ConflictError(UserError):
    """Somebody else wrote it first, or the present state forbids the change."""

    exit_code = 8


class WithdrawnError(ConflictError):
    """The patient took back consent while a step was at work: nothing that it made is kept."""

    exit_code = 14


class IntegrityError(UserError):
    """Bytes do not match their recorded sha256."""

    exit_code = 9


class UnavailableError(UserError):
    """A server (object store, catalog, tracking) does not answer; trying again later may help."""

    exit_code = 12


class RefusedError(UserError):
    """A server or a disk answers and cannot do it: full, read-only, damaged; waiting does not help."""

    exit_code = 13


@dataclass(frozen=True)
class Meaning:
    """What an error of a server, a driver or a disk means to RetroLN.

    Attributes:
        kind: the error to raise; `UnavailableError` alone is worth another try.
        what: what is the matter, to follow the name of the server: "is read-only".
        fix: what a person can do.
    """

    kind: type[UserError]
    what: str
    fix: str

    def error(self, subject: str, *, file: str | Path | None = None, got: str | None = None) -> UserError:
        """The error to raise, about `subject`: "the catalog", "the object store"."""
        return self.kind(f"{subject} {self.what}", file=file, got=got, fix=self.fix)
