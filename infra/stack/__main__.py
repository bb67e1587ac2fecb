"""`python -m infra.stack up|down|status|deploy`: what `make stack` and `make stack-down` call."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from infra.stack.lifecycle import down, rotate, up
from infra.stack.plan import Stack
from infra.stack.supervisor import Supervisor
from retroln.errors import UserError


@click.group()
def main() -> None:
    """The whole platform on this machine, on loopback alone."""


@main.command("up")
@click.option("--shard-workers", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--webhook", is_flag=True, help="Let MLflow call this machine, to shorten the wait for reconcile."
)
def start(shard_workers: int, webhook: bool) -> None:
    """Start every server and worker, and deploy."""
    stack = Stack.here()
    _or_exit(lambda: up(stack, shard_workers=shard_workers, webhook=webhook, tell=_tell))
    click.echo(f"Prefect  {stack.prefect_url}  (login: PREFECT_LOGIN)")
    click.echo(f"MLflow   {stack.mlflow_url}  (logins: admin, reviewer)")
    click.echo(f"S3       {stack.s3_url}  (deliver CT to bucket source)")
    click.echo(f"Logins are in {stack.home}/logins.env; retroln finds its own in {stack.home}/retroln.env")


@main.command("rotate")
@click.option("--shard-workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--webhook", is_flag=True, help="As for up.")
def new_logins(shard_workers: int, webhook: bool) -> None:
    """Give every login, key and password a new value and start anew with them."""
    stack = Stack.here()
    _or_exit(lambda: rotate(stack, shard_workers=shard_workers, webhook=webhook, tell=_tell))
    click.echo(f"new logins are in {stack.home}/logins.env")


def _tell(what: str) -> None:
    click.echo(f"  {what} ...")


def _or_exit(do: Callable[[], None]) -> None:
    try:
        do()
    except (RuntimeError, TimeoutError, UserError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


@main.command("down")
def stop() -> None:
    """Stop what `up` started; data stays."""
    stack = Stack.here()
    _or_exit(lambda: click.echo("stopped" if down(stack) else f"nothing runs in {stack.home}"))


@main.command()
def status() -> None:
    """Say what runs."""
    supervisor = Supervisor(Stack.here().home)
    if not supervisor.is_running():
        click.echo("nothing runs")
        sys.exit(1)
    _or_exit(lambda: _show(supervisor))


def _show(supervisor: Supervisor) -> None:
    for name, info in supervisor.states().items():
        click.echo(f"{name:<24}{info['statename']:<10}{info['description']}")


@main.command()
@click.option("--pool-type", default="process", show_default=True, help="Type of pools that are made anew.")
def deploy(pool_type: str) -> None:
    """Pools, queues, automations and deployments on the server that PREFECT_API_URL names."""
    from infra.stack.deploy import deploy as deploy_all
    from retroln.settings import Settings

    deploy_all(Settings(), pool_type)
    click.echo("deployed")


if __name__ == "__main__":
    main()
