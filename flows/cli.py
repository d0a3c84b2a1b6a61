"""The `lorascope` command. Imports are inside the commands: `--help` must need neither Prefect, torch nor DuckDB."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from scanner.errors import LorascopeError
from scanner.settings import DEFAULT_BATTERY, FEATURE_SETS, READINGS

__all__ = ["main"]

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
VERDICTS = ("flagged", "error", "unsupported", "review", "clean", "inconclusive")

store_option = click.option(
    "--store", metavar="URI", envvar="LORASCOPE_STORE", help="Folder or s3://BUCKET/PREFIX of the store."
)
probe_options = (
    click.option(
        "--probe",
        type=click.Choice(["auto", "all", "none"]),
        default="auto",
        show_default=True,
        help="Who is probed: nobody, everybody that can be, or a choice within the budget.",
    ),
    click.option("--battery", metavar="NAME", default=DEFAULT_BATTERY, show_default=True, help="Battery of strings."),
    click.option(
        "--texts",
        type=click.Path(dir_okay=False),
        help='JSON lines {"text", "label"}; label 1 is what an attack must flip.',
    ),
    click.option(
        "--reading",
        type=click.Choice(READINGS),
        help="Label words by their scores, or 5 greedy tokens.  [default: LORASCOPE_READING, else scored]",
    ),
)


features_option = click.option(
    "--features",
    type=click.Choice(FEATURE_SETS),
    help="Weight features; full looks at every entry of ΔW, too.  [default: LORASCOPE_FEATURES, else default]",
)


policy_option = click.option(
    "--policy",
    type=click.Path(dir_okay=False),
    help="TOML file with thresholds in place of the shipped ones.  [default: LORASCOPE_POLICY]",
)


def with_probe_options(command: Any) -> Any:
    """Add --probe, --battery, --texts and --reading."""
    for option in reversed(probe_options):
        command = option(command)
    return command


class _Group(click.Group):
    """Prints lorascope's errors as one line and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LorascopeError as error:
            click.echo(f"lorascope: {error.message}", err=True)
            ctx.exit(EXIT_ERROR)
        except (KeyboardInterrupt, click.exceptions.Abort):
            # click's own code for this is 1, which says "flagged".
            click.echo("lorascope: interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (click.exceptions.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            # A traceback would end with exit code 1, which says "flagged".
            if os.environ.get("LORASCOPE_DEBUG"):
                raise
            text = " ".join(str(error).split())[:300]
            click.echo(
                f"lorascope: {type(error).__name__}: {text} (LORASCOPE_DEBUG=1 shows where; please report it)", err=True
            )
            ctx.exit(EXIT_ERROR)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lorascope", prog_name="lorascope")
def main() -> None:
    """Find backdoored LoRA adapters: crawl a model hub, scan, probe, store and judge."""


@main.command()
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@with_probe_options
@features_option
@policy_option
@click.option("--explain", is_flag=True, help="Show the strongest modules, and the tokens that they push.")
@store_option
@click.option("--format", "output", type=click.Choice(["table", "json", "sarif"]), default="table", show_default=True)
def scan(targets: tuple[str, ...], store: str | None, output: str, **options: Any) -> None:
    """Scan repos (owner/name, owner/name@revision) or folders now."""
    from flows.commands import run_scan

    sys.exit(run_scan(targets, store=store, output=output, **options))


@main.command()
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="At most N repos; the rest is left for the next crawl."
)
@click.option("--base", metavar="MODEL", help="Only adapters of this base model.")
@click.option("--since", metavar="TIME", help="Begin here (ISO 8601) instead of at the stored watermark.")
@with_probe_options
@features_option
@policy_option
@store_option
def crawl(store: str | None, **options: Any) -> None:
    """Crawl the Hub that HF_ENDPOINT names, from the stored watermark."""
    from flows.commands import run_crawl

    sys.exit(run_crawl(store=store, **options))


@main.command()
@click.option("--base", metavar="MODEL", help="Only adapters of this base model.")
@click.option("--verdict", type=click.Choice(VERDICTS), help="Only this verdict.")
@click.option("--changes", is_flag=True, help="Instead what has changed: newly flagged, cleared, and why.")
@store_option
@click.option("--format", "output", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def verdicts(base: str | None, verdict: str | None, changes: bool, store: str | None, output: str) -> None:
    """Show the current verdict of every adapter."""
    from flows.show import show_changes, show_verdicts

    show = show_changes if changes else show_verdicts
    show(base=base, verdict=verdict, store=store, output=output)


@main.command()
@click.argument("target", metavar="REPO")
@store_option
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def explain(target: str, store: str | None, output: str) -> None:
    """Say what the verdict on a repo (owner/name, owner/name@commit) or a scanned folder rests on."""
    from flows.show import run_explain

    run_explain(target, store=store, output=output)


@main.command()
@click.argument("query")
@store_option
@click.option("--format", "output", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def sql(query: str, store: str | None, output: str) -> None:
    """Run one read-only SQL statement over the store."""
    from flows.show import run_sql

    run_sql(query, store=store, output=output)


@main.command()
@click.option("--base", metavar="MODEL", help="Only adapters of this base model.")
@policy_option
@store_option
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def calibrate(base: str | None, policy: str | None, store: str | None, output: str) -> None:
    """Build and freeze references from the store, and judge history again: writes new current verdicts."""
    from flows.commands import run_calibrate

    run_calibrate(base=base, policy=policy, store=store, output=output)


@main.group()
def hub() -> None:
    """A folder of repos as a local Hub."""


@hub.command("serve")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--port", type=click.IntRange(0, 65535), default=8899, show_default=True, help="0 takes a free one.")
@click.option("--cdn-port", type=click.IntRange(0, 65535), default=0, help="Port of large files; 0 takes a free one.")
@click.option("--faults", type=click.Path(), help="JSON file of faults and changes to act out (docs/hub.md).")
@click.option("--quota", type=click.IntRange(min=1), help="Requests per window, all addresses together.")
@click.option("--window-s", type=click.FloatRange(min=0.1), default=300.0, show_default=True, help="Its seconds.")
@click.option("--strict-errors", is_flag=True, help="Refuse in the site's own words, made for https.")
def hub_serve(
    directory: str,
    port: int,
    cdn_port: int,
    faults: str | None,
    quota: int | None,
    window_s: float,
    strict_errors: bool,
) -> None:
    """Serve DIR/<owner>/<repo>/ over the Hub's HTTP API until interrupted."""
    from pathlib import Path

    from scanner.hub.server import serve

    serve(
        Path(directory),
        port,
        announce=click.echo,
        cdn_port=cdn_port,
        faults=Path(faults) if faults else None,
        quota=quota,
        window_s=window_s,
        strict_errors=strict_errors,
    )


@main.command()
@click.option("--store", metavar="URI", help="Keep the demo's store here (default: a temporary folder).")
@click.option("--texts-limit", type=click.IntRange(min=10), default=30, show_default=True, help="Texts per prefix.")
def demo(store: str | None, texts_limit: int) -> None:
    """Run the whole pipeline on the bundled hub and print the verdicts."""
    from flows.demo import run_demo

    sys.exit(run_demo(store=store, texts_limit=texts_limit))


@main.command()
@click.option("--store", metavar="URI", envvar="LORASCOPE_STORE", help="Store of the deployed flows.")
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.IntRange(min=10),
    envvar="LORASCOPE_EVERY",
    help="Crawl interval instead of the file's.",
)
@click.option("--probe", type=click.Choice(["auto", "all", "none"]), help="Who is probed, instead of the file's.")
@click.option(
    "--pool",
    type=click.Choice(["scan-cpu", "scan-gpu"]),
    envvar="LORASCOPE_POOL",
    help="Work pool of every deployment instead of the file's.",
)
def deploy(store: str | None, every: int | None, probe: str | None, pool: str | None) -> None:
    """Create work pools and deployments on the Prefect server that PREFECT_API_URL names."""
    from flows.deploy import run_deploy

    run_deploy(store=store, every=every, probe=probe, pool=pool)


@main.command()
@store_option
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def doctor(store: str | None, output: str) -> None:
    """Check what a scan needs: Hub, token, store, Prefect server, device, disks, versions. Exits with 2 on an error."""
    from flows.doctor import run_doctor

    sys.exit(run_doctor(store=store, output=output))


@main.group("store")
def store_group() -> None:
    """The store itself."""


@store_group.command("path")
@store_option
def store_path(store: str | None) -> None:
    """Print where the store is."""
    from scanner.settings import default_store_uri

    click.echo(store or default_store_uri())


@store_group.command("check")
@click.option("--clean", is_flag=True, help="Remove leftovers that are older than the grace period.")
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=86_400.0,
    show_default=True,
    help="Younger files may belong to a run that is still writing.",
)
@store_option
def store_check(clean: bool, grace: float, store: str | None) -> None:
    """Look for shards that are not whole and for files that dead processes have left."""
    from flows.commands import run_store_check

    sys.exit(run_store_check(store=store, clean=clean, grace_s=grace))


if __name__ == "__main__":
    main()
