"""One check of `retroln doctor`: what was looked at, what was seen, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from retroln.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, what was seen, how to mend it."""

    name: str
    well: bool
    seen: str
    fix: str = ""


def tried(name: str, place: str, use: Callable[[], object], variable: str) -> Finding:
    """Use a place. Text that `use` returns is what was seen; an error's own fix comes before `variable`."""
    try:
        seen = use()
    except UserError as error:
        text = _without_login(f"{place}: {_without_fix(error)}")
        return Finding(name, False, text, _without_login(_fix(error, variable)))
    except Exception as error:
        line = f"{place}: {type(error).__name__}: {error}".split("\n")[0]
        return Finding(name, False, _without_login(line), f"check {variable}")
    return Finding(name, True, _without_login(f"{place}: {seen}" if isinstance(seen, str) else place))


def _without_login(text: str) -> str:
    """Addresses may hold a password; what the doctor says may be sent to a colleague."""
    return re.sub(r"(password=)[^&\s;]*", r"\1...", re.sub(r"://\S*@", "://", text))


def _without_fix(error: UserError) -> str:
    return str(error).removesuffix(f"; fix: {error.fix}")


def _fix(error: UserError, variable: str) -> str:
    if not error.fix:
        return f"check {variable}"
    return error.fix if variable in error.fix else f"{error.fix} ({variable})"
