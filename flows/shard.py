"""How a shard's own flow run ends. Its outcomes are in the ledger already; this is for who looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from retroln.catalog.accounting import CaseOutcome, Outcome


def told(outcomes: Sequence[CaseOutcome]) -> State[None]:
    """Counts as the state's message; failed cases make the shard Failed."""
    counts = Counter(outcome.outcome for outcome in outcomes)
    message = ", ".join(f"{counts[kind]} {kind.value}" for kind in Outcome)
    if counts[Outcome.FAILED]:
        return Failed(message=message)
    return Completed(name="Quarantined" if counts[Outcome.QUARANTINED] else "Completed", message=message)
