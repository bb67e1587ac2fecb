"""What this process may use of its machine. A container may use less than the machine has.

Linux tells a process of the whole machine unless it looks at its own bounds: the processors that it is
pinned to, and the limits of its control groups (versions 1 and 2), which hold for a group and all below it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from retroln.errors import UserError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (the place where Linux keeps it)
"""Where processes keep the tensors and semaphores that they share."""

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores(groups: Path = _GROUPS, own: Path = _OWN_GROUPS) -> int:
    """Processors that this process may keep busy, at least one; part of a processor counts as one.

    Args:
        groups: where the control groups are mounted.
        own: list of the groups that the process is in.
    """
    quotas = [_quota(folder) for folder in _folders("cpu", groups, own)]
    return max(1, math.ceil(min([len(os.sched_getaffinity(0)), *quotas])))


def memory_bytes(groups: Path = _GROUPS, own: Path = _OWN_GROUPS) -> int:
    """Memory that this process may take, together with the others in its control groups; without swap."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min([physical, *(_limit(folder) for folder in _folders("memory", groups, own))]))


def shared_memory_bytes(place: Path = SHARED_MEMORY) -> int | None:
    """Size of the shared memory; None where there is none."""
    try:
        status = os.statvfs(place)
    except OSError:
        return None
    return status.f_frsize * status.f_blocks


def share_threads(processes: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process, one of `processes` that work side by side, compute with its share of the processors.

    Libraries would each start one thread per processor that the process is not kept off, whatever its quota
    and its siblings. They read OMP_NUM_THREADS when they are loaded; a smaller number given there stays.
    """
    share = max(1, cores() // processes)
    given = environment.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    if given.isdigit() and int(given) > share:
        environment["OMP_NUM_THREADS"] = str(share)


def require_home() -> Path:
    """The user's home folder, which programs of others ask for as they load.

    Raises:
        UserError: HOME is not set, and the system knows no such user, as in a container run under any number.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise UserError(
            "no home folder is known",
            expected=f"the variable HOME, or an entry for user {os.getuid()} in /etc/passwd",
            fix="set HOME to a folder",
        ) from error


def _folders(controller: str, groups: Path, own: Path) -> Iterator[Path]:
    """Folders of the group that this process is in and of those above it, as far as they are to be seen."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controllers
        group = root / path.strip("/")
        # in a container the path may be the host's, while the mount begins at the container's own group
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _quota(folder: Path) -> float:
    """Processors' time per time."""
    divided = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    words = _words(folder / "cpu.max") or divided
    if len(words) < 2 or words[0] in ("max", "-1"):
        return math.inf
    return int(words[0]) / int(words[1])


def _limit(folder: Path) -> float:
    words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
    return float(words[0]) if words and words[0] != "max" else math.inf


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []
