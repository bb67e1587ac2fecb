"""Stand-in weights, made once per machine: `python -m infra.stand_in_weights`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.landmarks.held_out import Platform
from tests.tiny_networks import pinned


@pytest.fixture(scope="session")
def networks() -> Path:
    """The stand-in network in TotalSegmentator's layout: from the cache, or trained now (minutes)."""
    pytest.importorskip("totalsegmentator")
    from infra.stand_in_weights.cache import cached

    return cached()


@pytest.fixture(scope="session")
def stand_ins(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return Platform(*pinned(tmp_path_factory.mktemp("stand-ins"), networks, quality="fast"))
