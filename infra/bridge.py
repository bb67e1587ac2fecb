"""Webhook bridge: MLflow says that an alias was set, the bridge starts reconcile at once. Optional.

It only shortens the wait for the schedule and ends in the same call: what may be promoted is decided by
reconcile alone. A call without MLflow's signature, or an old one, is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
import time
from base64 import b64encode
from collections.abc import Mapping

from fastapi import FastAPI, HTTPException, Request

_OLDEST_S = 300


def app(secret: str) -> FastAPI:
    """The web application; `secret` is the one that MLflow's webhook was made with."""
    bridge = FastAPI(title="RetroLN webhook bridge", docs_url=None, redoc_url=None, openapi_url=None)

    @bridge.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @bridge.post("/mlflow", status_code=202)
    async def mlflow(request: Request) -> dict[str, str]:
        body = (await request.body()).decode()
        identifier = request.headers.get("x-mlflow-delivery-id", "")
        if not is_signed(secret, request.headers, body):
            raise HTTPException(401, "not signed by the MLflow that this bridge serves")
        if json.loads(body).get("data", {}).get("alias") != "approved":
            return {"flow_run": "none: reconcile itself sets the other aliases"}
        return {"flow_run": await _start_reconcile(identifier)}

    return bridge


def is_signed(secret: str, headers: Mapping[str, str], body: str) -> bool:
    """Whether MLflow signed this body within the last five minutes."""
    names = ("x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature")
    identifier, moment, given = (headers.get(name, "") for name in names)
    if not moment.isdigit() or abs(time.time() - int(moment)) > _OLDEST_S:
        return False
    signed = hmac.new(secret.encode(), f"{identifier}.{moment}.{body}".encode(), hashlib.sha256).digest()
    return hmac.compare_digest(f"v1,{b64encode(signed).decode()}", given)


async def _start_reconcile(delivery: str) -> str:
    from prefect.deployments import run_deployment

    run = await run_deployment(
        "reconcile/reconcile", timeout=0, idempotency_key=f"mlflow-{delivery}", as_subflow=False
    )
    return str(run.id)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app(os.environ["RETROLN_WEBHOOK_SECRET"]), host="127.0.0.1", port=int(sys.argv[1]))
