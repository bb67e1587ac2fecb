"""What the servers hold before anything runs: databases, buckets, MLflow's users. It may be repeated."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from infra.stack.plan import BUCKETS, DATABASES, MLFLOW_USERS, Stack

EXPERIMENT = MODEL = "retroln"
WEBHOOK = "retroln-reconcile"


def make_databases(stack: Stack, superuser_password: str) -> None:
    """One database per service, each owned by a login of its own."""
    import psycopg
    from psycopg import sql

    login = {"host": "127.0.0.1", "port": stack.postgres_port, "user": "app", "password": superuser_password}
    with psycopg.connect(dbname="postgres", autocommit=True, **login) as connection:
        for name in DATABASES:
            named, password = sql.Identifier(name), sql.Literal(stack.secrets["postgres"][name])
            if not _exists(connection, "pg_roles", "rolname", name):
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(named, password))
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(named, password))
            if not _exists(connection, "pg_database", "datname", name):
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(named, named))
            connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(named))
    with psycopg.connect(dbname="prefect", autocommit=True, **login) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")


def _exists(connection: Any, table: str, column: str, name: str) -> bool:
    return bool(connection.execute(f"SELECT 1 FROM {table} WHERE {column} = %s", (name,)).fetchone())


def is_catalog_current(stack: Stack) -> bool:
    """Whether the catalog's tables are those of this RetroLN."""
    from retroln.catalog.database import revision_at
    from retroln.catalog.revisions import WANTED

    return revision_at(*_catalog(stack)) == WANTED


def upgrade_catalog(stack: Stack) -> None:
    """What `retroln catalog upgrade` does, by the login that the workers have: it owns the database."""
    from retroln.catalog.database import upgrade_database

    upgrade_database(*_catalog(stack))


def _catalog(stack: Stack) -> tuple[str, str]:
    return stack.database_url("retroln", "psycopg"), stack.secrets["postgres"]["retroln"]


def make_buckets(stack: Stack) -> None:
    """The buckets that are missing."""
    with closing(stack.s3("admin").client()) as client:
        known = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for name in BUCKETS:
            if name not in known:
                client.create_bucket(Bucket=name)


def make_mlflow_users(stack: Stack) -> None:
    """Who may do what in MLflow.

    `operator` runs the platform and moves aliases, `gpu` trains and infers and moves none, `reviewer`
    may tag versions and set an alias. Everybody may read.
    """
    from mlflow import MlflowClient
    from mlflow.server.auth.client import AuthServiceClient

    act_as(stack, "admin")
    admin = AuthServiceClient(stack.mlflow_url)
    for name in MLFLOW_USERS[1:]:
        _ensure(admin.create_user, name, stack.secrets["mlflow"][name])
        admin.update_user_password(name, stack.secrets["mlflow"][name])
    client = MlflowClient(stack.mlflow_url)
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = str(found.experiment_id) if found else client.create_experiment(EXPERIMENT)
    _ensure(client.create_registered_model, MODEL)
    for user, kind, identifier, permission in (
        ("operator", "experiment", experiment, "MANAGE"),
        ("operator", "registered_model", MODEL, "MANAGE"),
        ("gpu", "experiment", experiment, "EDIT"),
        ("reviewer", "registered_model", MODEL, "EDIT"),
    ):
        _ensure(admin.grant_user_permission, user, kind, identifier, permission)


def make_webhook(stack: Stack) -> None:
    """Let MLflow tell the bridge whenever an alias is set."""
    from mlflow import MlflowClient

    act_as(stack, "admin")
    client = MlflowClient(stack.mlflow_url)
    for known in _webhooks(client):
        if known.name == WEBHOOK:
            client.delete_webhook(known.webhook_id)  # its secret or port may be another by now
    client.create_webhook(
        WEBHOOK,
        f"http://127.0.0.1:{stack.bridge_port}/mlflow",
        ["model_version_alias.created"],
        description="Starts reconcile at once instead of at its next scheduled time",
        secret=stack.secrets["webhook"],
    )


def _webhooks(client: Any) -> list[Any]:
    """All of them: MLflow answers in pages."""
    page = client.list_webhooks()
    found = list(page)
    while page.token:
        page = client.list_webhooks(page_token=page.token)
        found += page
    return found


def change_admin_password(stack: Stack, old: str, new: str) -> None:
    """MLflow's admin is the one user whom only MLflow itself can give another password."""
    import os

    from mlflow.server.auth.client import AuthServiceClient

    os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = "admin", old
    AuthServiceClient(stack.mlflow_url).update_user_password("admin", new, current_password=old)


def act_as(stack: Stack, user: str) -> None:
    """Let MLflow's client in this process log in as `user`; it reads its login from the environment."""
    import os

    os.environ["MLFLOW_TRACKING_USERNAME"] = user
    os.environ["MLFLOW_TRACKING_PASSWORD"] = stack.secrets["mlflow"][user]


def _ensure(create: Any, *arguments: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        create(*arguments)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
