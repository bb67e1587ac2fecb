"""The stack's private files: who is given the key of the pseudonyms, also in a stack made without one."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from infra.stack.plan import Stack, new_secrets


def test_only_who_ingests_is_given_the_key_of_the_pseudonyms(tmp_path: Path) -> None:
    stack = Stack(tmp_path, 20000)
    key = stack.secrets["pseudonym"]
    assert stack.client_environment("operator")["RETROLN_PSEUDONYM_KEY"] == key
    assert key not in stack.client_environment("gpu").values()


def test_a_stack_from_before_gets_a_key_once_and_keeps_its_other_secrets(tmp_path: Path) -> None:
    before = {name: value for name, value in new_secrets().items() if name != "pseudonym"}
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps(before))
    first, again = Stack(tmp_path, 20000).secrets, Stack(tmp_path, 20000).secrets
    assert first == again == json.loads(path.read_text())
    assert {name: first[name] for name in before} == json.loads(json.dumps(before))
    assert len(first["pseudonym"]) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
