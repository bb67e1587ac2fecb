"""How a pass over many cases shows itself: a bar on stderr while it runs, a sentence when it ends."""

from __future__ import annotations

from collections.abc import Callable

from retroln.catalog.accounting import Accounting, CaseOutcome

FAILED_EXIT_CODE = 10


def sentence(accounting: Accounting) -> str:
    """The sum, in words."""
    return (
        f"{accounting.n_in} in = {accounting.done} done + {accounting.skipped} skipped"
        f" + {accounting.quarantined} quarantined + {accounting.failed} failed"
    )


class progress:
    """A bar that counts outcomes, with the time so far and the time left."""

    def __init__(self, title: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Callable[[CaseOutcome], None]:
        self._progress.start()
        return lambda outcome: self._progress.advance(self._task)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
