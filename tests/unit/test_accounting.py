"""The accounting balances or does not exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retroln.catalog.accounting import Accounting, AccountingError, CaseOutcome, Outcome

counts = st.integers(0, 10_000)


def outcomes(*kinds: Outcome) -> list[CaseOutcome]:
    return [CaseOutcome(f"case-{number}", kind) for number, kind in enumerate(kinds)]


def test_outcomes_are_counted_by_kind():
    listed = outcomes(Outcome.DONE, Outcome.DONE, Outcome.SKIPPED, Outcome.QUARANTINED, Outcome.FAILED)
    assert Accounting.of(listed, 5).to_dict() == {
        "in": 5,
        "done": 2,
        "skipped": 1,
        "quarantined": 1,
        "failed": 1,
    }


@pytest.mark.parametrize("n_in", [0, 1, 3])
def test_a_lost_or_invented_case_is_an_error(n_in: int):
    with pytest.raises(AccountingError, match="does not balance"):
        Accounting.of(outcomes(Outcome.DONE, Outcome.FAILED), n_in)


def test_a_case_with_two_outcomes_is_an_error_even_if_the_sum_fits():
    twice = [CaseOutcome("a", Outcome.DONE), CaseOutcome("a", Outcome.FAILED)]
    with pytest.raises(AccountingError, match="more than one outcome: a"):
        Accounting.of(twice, 2)


def test_negative_counts_never_balance():
    with pytest.raises(AccountingError):
        Accounting(0, done=1, failed=-1)


def test_nothing_in_is_balanced():
    assert Accounting.of([], 0) == Accounting(0)


@given(st.lists(st.tuples(counts, counts, counts, counts), min_size=1, max_size=5))
def test_shards_add_up(shards: list[tuple[int, int, int, int]]):
    total = sum((Accounting(sum(shard), *shard) for shard in shards), Accounting(0))
    assert total.n_in == sum(map(sum, shards))
    assert (total.done, total.skipped, total.quarantined, total.failed) == tuple(
        map(sum, zip(*shards, strict=True))
    )
