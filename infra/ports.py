"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import random
import socket


def free_ports(count: int) -> int:
    """The first of `count` neighbouring free ports, below the range the kernel hands out itself."""
    for _ in range(200):
        base = random.randrange(12000, 32000 - count)  # noqa: S311
        if all(is_free(base + offset) for offset in range(count)):
            return base
    raise RuntimeError("no free ports between 12000 and 32000")


def is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
