"""Crawl after crawl as real processes, killed at random moments, and the store checked after each."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.fleet import Fleet, kill_group, prepared_fleet, wait_for
from benchmarks.kills.verify import Contents, Facts, look, read_contents
from benchmarks.kills.watch import StoreWatch
from benchmarks.kills.world import World

__all__ = ["Tally", "run_kills"]

ENDED_WELL = (0, 1, 3)
SERVER_OPTIONS = ("--no-services",)
"""Nothing is scheduled here; the services would only take processor time."""
KINDS = {"crawl": 0.6, "probe": 0.25, "server": 0.15}
CRAWL_LIMIT_S = 300
ORPHAN_LIMIT_S = 5


@dataclass
class Tally:
    """What the whole run saw."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    crawls: int = 0
    finished: int = 0
    stores_compared: int = 0
    outages_survived: int = 0
    outages_told: int = 0
    """Crawls that ended with one line and exit code 2 because the Prefect server was gone."""
    expected: int = 0
    judged: int = 0
    doubled: int = 0
    lost: int = 0
    altered: int = 0
    """Rows of a finished store that differ from those of the undisturbed one."""
    temporary_read: int = 0
    temporary_left: int = 0
    uncommitted_left: int = 0
    orphans: int = 0
    workspaces_left: int = 0
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The log line of the issue."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        return (
            f"kills {self.kills.total()} ({kinds}); adapters expected {self.expected}, judged {self.judged}; "
            f"rows doubled {self.doubled}, rows lost {self.lost}"
        )


@dataclass(frozen=True)
class Undisturbed:
    """A stage that nobody disturbed: what the store must hold in the end, and how long things take."""

    contents: Contents
    crawl_s: float
    probe_s: float
    n_events: int
    n_markers: int

    @property
    def n_adapters(self) -> int:
        """Adapters at every commit that was scanned: a changed repo counts twice."""
        return self.contents["adapters"].total()

    def left(self, n_done: int) -> Undisturbed:
        """What a crawl has left to do when an earlier one, killed, has committed so much: kills aim at that."""
        share = max(0.2, 1 - n_done / self.n_markers)
        return replace(self, crawl_s=self.crawl_s * share, n_events=max(1, round(self.n_events * share)))


@dataclass
class _Site:
    """Where everything happens."""

    root: Path
    fleet: Fleet
    server: subprocess.Popen[bytes]
    endpoint: str
    world: World
    texts: Path
    rng: random.Random
    wanted: int
    deadline: float
    tally: Tally
    say: Callable[[str], None]

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    def start_crawl(self, store: Path) -> subprocess.Popen[bytes]:
        self.tally.crawls += 1
        options = ("--probe", "all", "--battery", "V", "--texts", str(self.texts), "--store", str(store))
        return self.fleet.start(
            "crawl.log",
            *("flows.cli", "crawl", *options),
            HF_ENDPOINT=self.endpoint,
            TMPDIR=str(self.temporary),
            LORASCOPE_BATCH_SIZE="5",
            LORASCOPE_MAX_SLEEP_S="0.5",
            OMP_NUM_THREADS="1",
        )

    def probes(self) -> list[int]:
        """Living probe children of all our crawls, by their TMPDIR; slow, because it looks at every process."""
        needle = f"TMPDIR={self.temporary}\0".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if b"scanner.probe.worker" in (entry / "cmdline").read_bytes() and needle in (
                    (entry / "environ").read_bytes() + b"\0"
                ):
                    found.append(int(entry.name))
        return found

    def done(self) -> bool:
        return self.tally.kills.total() >= self.wanted or time.monotonic() >= self.deadline


def run_kills(
    root: Path, kills: int, seed: int, say: Callable[[str], None] = print, limit_s: float = math.inf
) -> Tally:
    """Kill until `kills` or the time is reached; every store is finished and compared before the next one begins."""
    tally = Tally()
    with _site(root, kills, seed, tally, say) as site:
        site.deadline = time.monotonic() + limit_s
        undisturbed = _episode(site, 0, None)
        number = 1
        while not site.done():
            _episode(site, number, undisturbed)
            number += 1
    return tally


@contextmanager
def _site(root: Path, kills: int, seed: int, tally: Tally, say: Callable[[str], None]) -> Iterator[_Site]:
    world = World(root / "registry")
    world.reset()
    (root / "tmp").mkdir()
    with prepared_fleet(root) as fleet:
        hub = fleet.start("hub.log", "flows.cli", "hub", "serve", str(world.folder), "--port", "0")
        site = None
        try:
            endpoint = wait_for("hub", lambda: _announced(root / "hub.log"), 60, fleet.logs, every_s=0.1)
            texts = world.write_texts(root / "texts.jsonl")
            server = fleet.start_server(*SERVER_OPTIONS)
            site = _Site(root, fleet, server, endpoint, world, texts, random.Random(seed), kills, math.inf, tally, say)
            yield site
        finally:
            kill_group(hub)
            if site is not None:
                kill_group(site.server)


def _announced(log: Path) -> str | None:
    first = log.read_text().partition("\n")
    return first[0].removeprefix("HF_ENDPOINT=") if first[1] else None


def _episode(site: _Site, number: int, undisturbed: list[Undisturbed] | None) -> list[Undisturbed]:
    """A fresh store and a fresh Hub cache; the registry as it was, then as it became."""
    shutil.rmtree(site.root / "hf", ignore_errors=True)
    store = site.root / f"store{number}"
    watch = StoreWatch(store, datetime.now(UTC).date().isoformat())
    seen = []
    try:
        for stage, alter in enumerate((site.world.reset, site.world.change)):
            if stage and undisturbed and site.done():
                break
            alter()
            seen.append(_stage(site, store, watch, undisturbed[stage] if undisturbed else None))
    finally:
        watch.drain()
        watch.close()
    site.tally.temporary_read += watch.decoys_opened
    facts = look(store, site.world.expected)
    site.tally.temporary_left += facts.temporary
    site.tally.uncommitted_left += facts.uncommitted
    if undisturbed:
        shutil.rmtree(store)
    return seen


def _stage(site: _Site, store: Path, watch: StoreWatch, undisturbed: Undisturbed | None) -> Undisturbed:
    """Crawl until everything is judged; without `undisturbed` nothing is killed."""
    tally, quiet, markers = site.tally, 0, watch.n_markers
    while True:
        began, events, killed = time.monotonic(), watch.n_events, tally.kills.total()
        crawl = site.start_crawl(store)
        probe_s = 0.0
        try:
            if undisturbed is None or site.done():
                probe_s = _follow(site, crawl)
            else:
                _disturb(site, crawl, watch, undisturbed.left(watch.n_markers - markers))
        finally:
            kill_group(crawl)
        seconds = time.monotonic() - began
        watch.drain()
        facts = look(store, site.world.expected)
        _note(site, facts)
        if crawl.returncode in ENDED_WELL:
            tally.finished += 1
            if facts.judged == facts.expected and (undisturbed is None or facts.adapters >= undisturbed.n_adapters):
                break
        quiet = quiet + 1 if killed == tally.kills.total() else 0
        if quiet > 3:
            tally.problems.append(f"crawls end and {facts.expected - facts.judged} adapters stay unjudged")
            site.say(site.fleet.logs())
            break
    left = list(site.temporary.glob("lorascope-*"))
    tally.workspaces_left += len(left)
    contents = read_contents(store)
    if undisturbed:
        tally.expected += undisturbed.n_adapters
        tally.judged += facts.judged_ever
        tally.stores_compared += 1
        _compare(tally, contents, undisturbed.contents)
        judged = f"{facts.judged_ever} of {undisturbed.n_adapters} judged"
        site.say(f"{tally.kills.total():4d} kills, {tally.crawls} crawls; {judged}")
    else:
        site.say(f"undisturbed: {seconds:.1f} s, probe {probe_s:.1f} s, {watch.n_events - events} files")
    return Undisturbed(contents, seconds, probe_s, watch.n_events - events, watch.n_markers - markers)


def _note(site: _Site, facts: Facts) -> None:
    site.tally.doubled += facts.doubled
    site.tally.lost += facts.lost
    for problem in facts.problems:
        site.tally.problems.append(problem)
        site.say(problem)


def _compare(tally: Tally, got: Contents, wanted: Contents) -> None:
    for table, rows in wanted.items():
        missing, more = rows - got[table], got[table] - rows
        tally.lost += max(0, missing.total() - more.total())
        tally.doubled += max(0, more.total() - missing.total())
        tally.altered += min(missing.total(), more.total())
        for what, some in (("missing", missing), ("unexpected", more)):
            if some:
                tally.problems.append(f"{table}: {some.total()} {what}, such as {next(iter(some))}")


def _follow(site: _Site, crawl: subprocess.Popen[bytes]) -> float:
    """Wait for the end; seconds during which a probe child lived."""
    deadline, probe_s, last = time.monotonic() + CRAWL_LIMIT_S, 0.0, time.monotonic()
    while crawl.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        now = time.monotonic()
        probe_s += (now - last) if _children(crawl) else 0.0
        last = now
    if crawl.returncode is None:
        site.tally.problems.append("a crawl hangs")
    return probe_s


def _disturb(site: _Site, crawl: subprocess.Popen[bytes], watch: StoreWatch, known: Undisturbed) -> None:
    """One crawl with one kill, or with a second one of the crawl itself after the first."""
    kind = site.rng.choices(list(KINDS), list(KINDS.values()))[0]
    events = watch.n_events
    if kind == "crawl":
        _kill_crawl(site, crawl, watch, known, events)
        return
    if kind == "probe":
        _kill_probe(site, crawl, watch, known, events)
    else:
        if _wait(crawl, watch, site.rng.uniform(0, known.crawl_s), None):
            _count(site, "server", _phase(site, crawl, watch, events))
            _outage(site, crawl)
    if crawl.poll() is None and not site.done() and site.rng.random() < 0.4:
        _kill_crawl(site, crawl, watch, known, events)
    else:
        _follow(site, crawl)


def _kill_crawl(
    site: _Site, crawl: subprocess.Popen[bytes], watch: StoreWatch, known: Undisturbed, events: int
) -> None:
    """After a random time, or right when a random file appears in the store."""
    if site.rng.random() < 0.5:
        limit, n_events = site.rng.uniform(0, known.crawl_s), None
    else:
        limit, n_events = float(CRAWL_LIMIT_S), events + site.rng.randint(1, known.n_events)
    if not _wait(crawl, watch, limit, n_events):
        return
    if n_events is not None:
        time.sleep(site.rng.choice((0.0, 0.0, 0.002)))
    # A file is there under its temporary name for a millisecond: first the kill, then the question what it hit.
    phase = None if n_events else _phase(site, crawl, watch, events)
    kill_group(crawl)
    _count(site, "crawl", phase or _phase(site, crawl, watch, events))
    deadline = time.monotonic() + ORPHAN_LIMIT_S
    while site.probes() and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in site.probes():
        site.tally.orphans += 1
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _kill_probe(
    site: _Site, crawl: subprocess.Popen[bytes], watch: StoreWatch, known: Undisturbed, events: int
) -> None:
    deadline = time.monotonic() + CRAWL_LIMIT_S
    while not (pids := _children(crawl)) and crawl.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(site.rng.uniform(0, known.probe_s) if pids else 0)
    for pid in _children(crawl):
        phase = _phase(site, crawl, watch, events)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            _count(site, "probe", phase)


def _outage(site: _Site, crawl: subprocess.Popen[bytes]) -> None:
    """The server dies and comes back: at once, or after the crawl has noticed."""
    kill_group(site.server)
    if site.rng.random() < 0.3:
        _follow(site, crawl)
    else:
        time.sleep(site.rng.uniform(0, 2))
    site.server = site.fleet.start_server(*SERVER_OPTIONS)
    _follow(site, crawl)
    if crawl.returncode in ENDED_WELL:
        site.tally.outages_survived += 1
        return
    said = (site.root / "crawl.log").read_text().strip().splitlines()
    if crawl.returncode == 2 and len(said) == 1 and said[0].startswith("lorascope: "):
        site.tally.outages_told += 1
        site.say(f"     {said[0]}")
    else:
        site.tally.problems.append(f"a crawl without its server ended with {crawl.returncode}: {str(said)[:500]}")
        site.say(site.tally.problems[-1])


def _children(crawl: subprocess.Popen[bytes]) -> list[int]:
    """Probe children of one crawl."""
    found: list[int] = []
    with suppress(OSError):  # one of them ended meanwhile
        for thread in Path(f"/proc/{crawl.pid}/task").glob("*/children"):
            found += map(int, thread.read_text().split())
        return [pid for pid in found if b"scanner.probe.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return []


def _wait(crawl: subprocess.Popen[bytes], watch: StoreWatch, limit_s: float, n_events: int | None) -> bool:
    """False when the crawl ended first."""
    deadline = time.monotonic() + limit_s
    while not watch.wait(min(deadline, time.monotonic() + 0.1), n_events):
        if crawl.poll() is not None:
            return False
        if time.monotonic() >= deadline:
            break
    return crawl.poll() is None


def _count(site: _Site, kind: str, phase: str) -> None:
    site.tally.kills[kind] += 1
    site.tally.phases[f"{kind} during {phase}"] += 1


def _phase(site: _Site, crawl: subprocess.Popen[bytes], watch: StoreWatch, events: int) -> str:
    """What the crawl was doing, by its traces."""
    watch.drain()
    if _children(crawl):
        return "probe"
    if watch.n_events == events:
        return "collect" if any(site.temporary.glob("lorascope-work-*/new.repos.json")) else "start"
    table, name = watch.last.split("/")
    if "crawl-" in name:
        return "record"
    if "judge-" in name:
        return "judge"
    return "collect" if table == "runs" and not name.endswith(".tmp") else "append"
