"""`lorascope deploy`: work pools and deployments of `deployments/prefect.yaml` on a Prefect server, repeatable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from flows.bundle import bundled
from flows.engine import configure_prefect
from scanner.errors import StopError, UsageError

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

__all__ = ["deployment_specs", "run_deploy"]

Spec = dict[str, Any]
POOLS = {"scan-cpu": "Crawls, and scans without a GPU.", "scan-gpu": "Scans on machines with a GPU."}
# A worker takes as many runs as come; two base models on one GPU do not fit.
WORKER_OPTIONS = {"scan-gpu": " --limit 1    # machines with a GPU"}
REQUEST_TIMEOUT_S = 10.0


def deployment_specs(
    *, store: str | None = None, every: int | None = None, probe: str | None = None, pool: str | None = None
) -> list[Spec]:
    """The file's deployments with the caller's choices applied."""
    specs: list[Spec] = yaml.safe_load(bundled("prefect.yaml", "deployments/prefect.yaml").read_text(encoding="utf-8"))[
        "deployments"
    ]
    for spec in specs:
        if store:
            # A worker runs flows in a folder of its own, where a relative path means something else.
            spec["parameters"]["store"] = store if "://" in store else str(Path(store).expanduser().resolve())
        if probe and "probe" in spec["parameters"]:
            spec["parameters"]["probe"] = probe
        if every:
            spec["schedules"] = [{**schedule, "interval": every} for schedule in spec["schedules"]]
        if pool:
            spec["work_pool"] = {**spec["work_pool"], "name": pool}
    return specs


def run_deploy(*, store: str | None, every: int | None, probe: str | None = None, pool: str | None = None) -> None:
    """Create or update what the file describes on the server of PREFECT_API_URL, and say what to start next.

    Args:
        store: store URI of the deployed flows; default is each worker's own LORASCOPE_STORE.
        every: crawl interval in seconds instead of the file's.
        probe: `auto`, `all` or `none` instead of the file's.
        pool: work pool of every deployment instead of the file's.

    Raises:
        UsageError: no server is named.
        StopError: the server does not answer, or refuses.
    """
    configure_prefect()
    specs = deployment_specs(store=store, every=every, probe=probe, pool=pool)
    with _connected_client() as client:
        for name, description in POOLS.items():
            click.echo(f"work pool {name}: {_ensure_pool(client, name, description)}", err=True)
        for spec in specs:
            flow = _load_flow(spec)
            click.echo(f"deployment {flow.name}/{spec['name']}: {_apply(client, flow, spec)}", err=True)
    used = sorted({spec["work_pool"]["name"] for spec in specs})
    lines = [
        f"Verdicts go to {specs[0]['parameters'].get('store') or 'the LORASCOPE_STORE of each worker'}.",
        "Next, on the machines that scan (PREFECT_API_URL set as here, HF_ENDPOINT and HF_TOKEN as for a scan):",
        *(f"  prefect worker start --pool {name}{WORKER_OPTIONS.get(name, '')}" for name in used),
        "and to scan something now:",
        """  prefect deployment run scan/scan -p 'targets=["owner/name"]'""",
    ]
    click.echo("\n".join(lines), err=True)


@contextmanager
def _connected_client() -> Iterator[SyncPrefectClient]:
    """A client of a server that has answered; its later failures become one line too."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    url = PREFECT_API_URL.value()
    if not url:
        raise UsageError(
            "PREFECT_API_URL names no server: start one with `prefect server start`, "
            "then `export PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    no_api = f"{url} is no Prefect API; PREFECT_API_URL usually ends in /api"
    try:
        # A person waits for the answer: seconds, not minutes of retries.
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}),
            get_client(sync_client=True, httpx_settings={"timeout": REQUEST_TIMEOUT_S}) as client,
        ):
            try:
                client.api_version()
            except ValueError as error:  # a web page instead of JSON
                raise UsageError(no_api) from error
            yield client
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        detail = no_api if status == 404 else error.response.text[:200].replace("\n", " ")
        raise StopError(f"the Prefect server {url} answered {status}: {detail}") from error
    except httpx.HTTPError as error:
        raise StopError(f"the Prefect server {url} does not answer: {error or type(error).__name__}") from error


def _ensure_pool(client: SyncPrefectClient, name: str, description: str) -> str:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        # A pool of another type (docker, kubernetes) is the site's choice and stays.
        return f"there already (type {client.read_work_pool(name).type})"
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=name, type="process", description=description, base_job_template=template)
        client.create_work_pool(pool)
        return "created (type process)"


def _load_flow(spec: Spec) -> Flow[Any, Any]:
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(spec["entrypoint"])


def _apply(client: SyncPrefectClient, flow: Flow[Any, Any], spec: Spec) -> str:
    """Create or update one deployment. One that says the same already is left alone: an update would drop its
    scheduled runs and restart its interval."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyOptions
    from prefect.client.schemas.schedules import IntervalSchedule
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.callables import parameter_schema

    wanted = {
        "version": version("lorascope"),
        "entrypoint": spec["entrypoint"],
        "description": spec["description"],
        "tags": spec["tags"],
        "work_pool_name": spec["work_pool"]["name"],
        "job_variables": spec["work_pool"]["job_variables"],
        "parameters": spec["parameters"],
        "parameter_openapi_schema": parameter_schema(flow).model_dump(mode="json", exclude_unset=True),
    }
    limit = dict(spec.get("concurrency_limit") or {})
    intervals = [timedelta(seconds=schedule["interval"]) for schedule in spec["schedules"]]
    try:
        found = client.read_deployment_by_name(f"{flow.name}/{spec['name']}")
    except ObjectNotFound:
        found = None
    if found is not None and _says(found, wanted, limit, intervals):
        return "unchanged"
    # Whoever switched a deployment or its schedule off on the server meant it.
    active = found is None or not found.schedules or any(schedule.active for schedule in found.schedules)
    client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name),
        name=spec["name"],
        pull_steps=[],
        enforce_parameter_schema=True,
        paused=found is not None and found.paused,
        schedules=[DeploymentScheduleCreate(schedule=IntervalSchedule(interval=i), active=active) for i in intervals],
        concurrency_limit=limit.pop("limit", None),
        concurrency_options=ConcurrencyOptions(**limit) if limit else None,
        **wanted,
    )
    return "created" if found is None else "updated"


def _says(found: DeploymentResponse, wanted: Spec, limit: Spec, intervals: list[timedelta]) -> bool:
    stored, options = found.global_concurrency_limit, found.concurrency_options
    return (
        all(getattr(found, name) == value for name, value in wanted.items())
        and [getattr(schedule.schedule, "interval", None) for schedule in found.schedules] == intervals
        and (stored.limit if stored else None) == limit.get("limit")
        and (options.collision_strategy.value if options else None) == limit.get("collision_strategy")
        and not found.pull_steps
    )
