"""Every login gets a new value: the old ones are refused, the platform goes on with the new. Runs last."""

from __future__ import annotations

import httpx
import pytest

from infra.stack.plan import Stack
from infra.stack.throwaway import command
from retroln.errors import SettingsError
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace


def _versions(settings: Settings) -> list[int]:
    return [found.version for found in open_workspace(settings).registry.versions()]


def test_rotation_replaces_every_secret_and_the_stack_goes_on(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROLN_ENV_FILE", str(stack.home / "retroln.env"))
    old, old_settings = stack.secrets, Settings()
    versions = _versions(old_settings)
    run_id = open_workspace(old_settings).catalog.begin_run("ingest", {"before": "rotation"})
    open_workspace(old_settings).store.put_bytes(b"from before", "probe/kept")
    command(stack, "rotate", "--shard-workers", "2", "--webhook")
    new = Stack(stack.home, stack.first_port).secrets
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {*old} - {"webhook_encryption", "pseudonym"}
    for kind in ("s3", "postgres", "mlflow"):
        assert not {str(v) for v in old[kind].values()} & {str(v) for v in new[kind].values()}
    flows = f"{stack.prefect_url}/api/flows/count"
    models = f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/search"
    for secrets, status in ((old, 401), (new, 200)):
        assert httpx.post(flows, json={}, auth=tuple(secrets["prefect"].split(":"))).status_code == status
        for user in ("admin", "operator", "reviewer"):
            assert httpx.get(models, auth=(user, secrets["mlflow"][user])).status_code == status, user
    fresh = Settings()
    assert _versions(fresh) == versions
    assert open_workspace(fresh).catalog.run(run_id).parameters == {"before": "rotation"}
    assert open_workspace(fresh).store.get_bytes("probe/kept") == b"from before"
    open_workspace(fresh).store.put_bytes(b"x", "probe/rotated")
    with pytest.raises(SettingsError):
        open_workspace(old_settings.model_copy(update={"work_dir": stack.home / "other"}))
    with pytest.raises(SettingsError):
        mixed = fresh.model_copy(update={"s3_secret_key": old_settings.s3_secret_key})
        open_workspace(mixed).store.get_bytes("probe/rotated")
