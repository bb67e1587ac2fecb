"""What `retroln doctor` says of the machine: what may be used of it, which places can be written."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from retroln import machine
from retroln.cli.finding import Finding, tried
from retroln.errors import UserError

_LITTLE_MEMORY = 2 << 30
_LITTLE_SHARED = 1 << 30
_LONGEST_SOCKET_FOLDER = 70
"""Letters; the system takes 107 for a socket, whose own folder and name come below the temporary one."""


def machine_findings() -> Iterator[Finding]:
    """Processors, memory, shared memory, letters, home and temporary folder."""
    yield _cores()
    yield _memory()
    yield _shared_memory()
    yield _letters()
    yield tried("home", os.environ.get("HOME", "HOME is not set"), _use_home, "HOME")
    yield _temporary()


def folder_finding(name: str, folder: Path, variable: str) -> Finding:
    """Whether a folder, made if it is missing, can be written."""
    return tried(name, str(folder.absolute()), lambda: _write_in(folder), variable)


def _cores() -> Finding:
    usable, there = machine.cores(), os.cpu_count() or 1
    return Finding("cores", True, f"{usable} usable" + ("" if usable == there else f" of {there}"))


def _memory() -> Finding:
    usable, there = machine.memory_bytes(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    seen = f"{_gib(usable)} usable" + ("" if usable == there else f" of {_gib(there)}")
    well = usable >= _LITTLE_MEMORY
    return Finding("memory", well, seen, "" if well else f"give this process {_gib(_LITTLE_MEMORY)} or more")


def _shared_memory() -> Finding:
    """A small one is well for all but the loaders of a training on a GPU server."""
    place, size = machine.SHARED_MEMORY, machine.shared_memory_bytes()
    if size is None or not os.access(place, os.W_OK):
        seen = f"{place} cannot be written: no process can start another to work with it"
        return Finding("shared memory", False, seen, f"mount a tmpfs on {place}, writable by all (mode 1777)")
    if size >= _LITTLE_SHARED:
        return Finding("shared memory", True, f"{place} has {_gib(size)}")
    seen = f"{place} has {size >> 20} MiB, too little to train the reference network with loader processes"
    return Finding("shared memory", True, seen, "docker run --shm-size=2g, or nnUNet_n_proc_DA=0")


def _letters() -> Finding:
    """Another encoding is well as long as names are ASCII."""
    encoding = sys.getfilesystemencoding()
    is_utf8 = encoding.lower().replace("-", "") == "utf8"
    return Finding(
        "file names", True, f"read as {encoding}", "" if is_utf8 else "LC_ALL=C.UTF-8, or PYTHONUTF8=1"
    )


def _use_home() -> str:
    home = machine.require_home()
    return (
        "can be written"
        if os.access(home, os.W_OK)
        else "cannot be written; caches go to the temporary folder"
    )


def _temporary() -> Finding:
    """A long path is well for all but the loaders of a training."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        return Finding("temporary folder", False, str(error), "set TMPDIR to a folder that can be written")
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER:
        return Finding("temporary folder", True, folder)
    seen = f"{folder} is too long a path to train the reference network with loader processes"
    fix = f"TMPDIR of at most {_LONGEST_SOCKET_FOLDER} letters, or nnUNet_n_proc_DA=0"
    return Finding("temporary folder", True, seen, fix)


def _write_in(folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return "can be written"
    except OSError as error:
        raise UserError("cannot be written", got=error.strerror, fix="make it writable") from error


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
