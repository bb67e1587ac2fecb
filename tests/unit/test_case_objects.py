"""What a step leaves behind when it fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from retroln.errors import RefusedError, UnavailableError
from retroln.steps.case_objects import taking_back

_SCAN = cast(Any, SimpleNamespace(case_id="P1", patient_id="PATIENT-1"))


@pytest.mark.parametrize("answer", [UnavailableError("no server"), RefusedError("no room left")])
def test_a_catalog_that_cannot_answer_does_not_hide_why_the_step_failed(answer: Exception) -> None:
    def withdrawal_of(_: str) -> Any:
        raise answer

    workspace = cast(Any, SimpleNamespace(catalog=SimpleNamespace(withdrawal_of=withdrawal_of)))
    with pytest.raises(ZeroDivisionError), taking_back(workspace, _SCAN, "crops/P1/"):
        raise ZeroDivisionError
