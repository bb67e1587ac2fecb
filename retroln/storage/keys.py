"""Which object keys are safe: one that passes can never leave its store or hide in it."""

from __future__ import annotations

from retroln.errors import InputError

MAX_KEY_BYTES = 1024  # S3's limit
MAX_PART_BYTES = 255  # of one file name on common file systems


def safe_key(key: str) -> str:
    """Return `key` unchanged when it may name an object.

    Raises:
        InputError: reason `unsafe_key`; the message says why (empty, absolute, "..", "//", hidden
            name, backslash, control character, too long).
    """
    problem = _problem(key)
    if problem:
        raise InputError(
            f"unsafe object key: {problem}",
            reason="unsafe_key",
            got=repr(key[:200]),
            expected="relative names joined by single slashes",
            fix="rename the object",
        )
    return key


def is_safe(key: str) -> bool:
    """Whether `safe_key` lets a key pass."""
    return _problem(key) is None


def safe_prefix(prefix: str) -> str:
    """Return `prefix` unchanged when it may start a key ("" and a trailing "/" are fine)."""
    if prefix:
        safe_key(prefix.removesuffix("/"))
    return prefix


def is_hidden(key: str) -> bool:
    """True when a part of `key` starts with a dot (partial files, records, .DS_Store)."""
    return any(part.startswith(".") and part not in (".", "..") for part in key.split("/"))


def _problem(key: str) -> str | None:
    parts = key.split("/")
    checks = {
        "it is empty": not key,
        "it is absolute": key.startswith("/"),
        "it holds an empty name": "" in parts,
        "it leaves its folder": ".." in parts or "." in parts,
        "it holds a hidden name": is_hidden(key),
        "it holds a backslash": "\\" in key,
        "it is no UTF-8 text": _is_broken_text(key),
        "it holds a control character": not key.isprintable(),
    }
    found = next((problem for problem, applies in checks.items() if applies), None)
    return found or _too_long(key, parts)


def _is_broken_text(key: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in key)


def _too_long(key: str, parts: list[str]) -> str | None:
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"it is longer than {MAX_KEY_BYTES} bytes"
    if max(len(part.encode()) for part in parts) > MAX_PART_BYTES:
        return f"a name in it is longer than {MAX_PART_BYTES} bytes"
    return None
