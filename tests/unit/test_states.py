"""The state machine, told once more from the outside."""

import pytest

from retroln.catalog.states import TRANSITIONS, ScanState, require_transition, state_after_requeue
from retroln.errors import ConflictError

S = ScanState


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (S.INGESTED, S.PREPARED),
        (S.INGESTED, S.QUARANTINED),
        (S.PREPARED, S.QUARANTINED),
        (S.PREPARED, S.INGESTED),
        (S.QUARANTINED, S.REQUEUED),
        (S.FAILED, S.PREPARED),
        (S.REQUEUED, S.SUPERSEDED),
        (S.SUPERSEDED, S.INGESTED),
        *((state, S.WITHDRAWN) for state in S if state not in (S.SUPERSEDED, S.WITHDRAWN)),
    ],
)
def test_the_ways_a_case_goes_are_open(before: ScanState, after: ScanState):
    require_transition("a", before, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (S.QUARANTINED, S.FAILED),
        (S.REQUEUED, S.PREPARED),
        (S.PREPARED, S.PREPARED),
        *((S.SUPERSEDED, state) for state in S if state is not S.INGESTED),
        *((S.WITHDRAWN, state) for state in S),
    ],
)
def test_other_ways_are_refused_with_what_is_allowed(before: ScanState, after: ScanState):
    with pytest.raises(ConflictError, match=f"case a cannot become {after}; expected: from {before}"):
        require_transition("a", before, after)


def test_every_state_but_the_last_two_can_be_superseded():
    assert {state for state, ways in TRANSITIONS.items() if S.SUPERSEDED not in ways} == {
        S.SUPERSEDED,
        S.WITHDRAWN,
    }


@pytest.mark.parametrize(
    ("has_ct", "has_crop", "expected"),
    [(False, False, S.REQUEUED), (True, False, S.INGESTED), (True, True, S.PREPARED)],
)
def test_requeue_goes_back_to_what_is_stored(has_ct: bool, has_crop: bool, expected: ScanState):
    assert state_after_requeue(has_ct=has_ct, has_crop=has_crop) is expected
