"""`lorascope doctor`: the library's checks, Prefect's, and how they are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from scanner.doctor import (
    CHILD_LIMIT_S,
    HUB_NAMES,
    VERSION_NAMES,
    Check,
    Group,
    Outcome,
    ask_child,
    check_device,
    check_disks,
    check_hub,
    check_store_writable,
    check_versions,
    installed_versions,
    one,
    run_groups,
    worst,
)
from scanner.doctor.check import secrets_of
from scanner.doctor.hub import current_token
from scanner.doctor.versions import declared_ranges
from scanner.settings import Settings, default_store_uri

__all__ = ["check_server", "doctor_groups", "judge_server", "run_doctor"]

EXIT_ERROR = 2
_NETWORK_LIMIT_S = 45.0
_LOCAL_LIMIT_S = 20.0
_STYLES = {Outcome.OK: "green", Outcome.WARNING: "yellow", Outcome.ERROR: "bold red", Outcome.SKIPPED: "dim"}
_SERVER_CODE = """
import prefect
from prefect.settings import PREFECT_API_URL
url = PREFECT_API_URL.value()
if not url:
    import prefect.server.api.server
    answer(client=prefect.__version__, url=None)
else:
    from prefect.client.base import ServerType
    from prefect.client.orchestration import get_client
    server = silent = None
    try:
        client = get_client(sync_client=True, httpx_settings={"timeout": 10})
        problem = client.api_healthcheck()
        if problem is not None:
            raise problem
        if client.server_type != ServerType.CLOUD:
            server = str(client.api_version())[:40]
    except Exception as error:
        silent = f"{type(error).__name__}: {error}"[:300]
    answer(client=prefect.__version__, url=url, server=server, silent=silent)
"""


def run_doctor(*, store: str | None, output: str) -> int:
    """`lorascope doctor`: 2 when something is an error, else 0."""
    secrets = secrets_of(os.environ, [current_token()])
    checks, is_hanging = run_groups(doctor_groups(store or default_store_uri(), Settings()), secrets)
    if output == "json":
        from scanner.report import strict_json

        click.echo(strict_json({"outcome": worst(checks), "checks": [vars(check) for check in checks]}))
    else:
        _print_table(checks)
    code = EXIT_ERROR if worst(checks) is Outcome.ERROR else 0
    if is_hanging:
        # A library's own clean-up at exit would wait for what hangs.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def doctor_groups(store: str, settings: Settings) -> list[Group]:
    """Everything that is looked at, in the order of the answer."""
    # Copied before any thread runs: importing the Hub's client sets variables, and a copy must not meet that.
    environment = dict(os.environ)
    return [
        Group(
            HUB_NAMES, _NETWORK_LIMIT_S, lambda: check_hub(settings), "check the network, HTTPS_PROXY and HF_ENDPOINT"
        ),
        one("store", _NETWORK_LIMIT_S, lambda: check_store_writable(store), "check that its disk or S3 server answers"),
        one("prefect server", CHILD_LIMIT_S + 10, lambda: check_server(environment)),
        one("device", CHILD_LIMIT_S + 10, lambda: check_device(settings.device, environment=environment)),
        Group(("temporary folder", "hub cache"), _LOCAL_LIMIT_S, lambda: check_disks(settings)),
        Group(VERSION_NAMES, _LOCAL_LIMIT_S, lambda: check_versions(installed_versions(), declared_ranges())),
    ]


def check_server(environment: Mapping[str, str], limit_s: float = CHILD_LIMIT_S) -> Check:
    """The server that PREFECT_API_URL (or Prefect's profile) names, or whether the embedded one can be loaded."""
    quiet = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_CLIENT_MAX_RETRIES": "0", "DO_NOT_TRACK": "1"}
    return judge_server(ask_child(_SERVER_CODE, limit_s, {**environment, **quiet}))


def judge_server(facts: Mapping[str, Any]) -> Check:
    """What the child process has found, in words."""
    name = "prefect server"
    if "problem" in facts:
        advice = "install what requirements.lock has; the version checks below may say which package does not fit"
        return Check(name, Outcome.ERROR, f"Prefect cannot be used: {facts['problem']}", advice)
    client, url = facts["client"], facts["url"]
    if url is None:
        return Check(name, Outcome.OK, f"PREFECT_API_URL is not set: crawls use an embedded server (Prefect {client})")
    if facts["silent"]:
        advice = "start it (`prefect server start`), correct PREFECT_API_URL, or unset it to use an embedded server"
        return Check(name, Outcome.ERROR, f"{url} does not answer as a Prefect server: {facts['silent']}", advice)
    server = facts["server"]
    if server is None or server == client:
        return Check(name, Outcome.OK, f"{url} answers (Prefect {client})")
    advice = f"run the server with Prefect {client}, the version that is installed here"
    difference = f"{url} runs Prefect {server}, this client is {client}"
    if server.split(".")[0] != client.split(".")[0]:
        return Check(name, Outcome.ERROR, f"{difference}: they do not understand each other", advice)
    if server.split(".")[:2] != client.split(".")[:2]:
        return Check(name, Outcome.WARNING, difference, advice)
    return Check(name, Outcome.OK, difference)


def _print_table(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from scanner.report.tables import plain

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("what", overflow="fold")
    for check in checks:
        told = Text(plain(check.message, 400))
        if check.advice and check.outcome is not Outcome.OK:
            told.append(f"\n→ {plain(check.advice, 400)}", style="italic")
        table.add_row(check.name, Text(check.outcome, style=_STYLES[check.outcome]), told)
    (Console() if sys.stdout.isatty() else Console(width=180)).print(table)
