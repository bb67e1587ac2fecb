"""Whether an HTTP server answers, whatever it thinks of who asks."""

from __future__ import annotations

import urllib.error
import urllib.request


def answers(url: str) -> bool:
    """True for a page, and for a server that wants a login first."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
