"""A small deterministic fuzzer for parsers of files: mutate valid files, watch what comes out.

A target brings a corpus and a function that reads a file. It fails on an exception that is not lorascope's own, on
anything that runs (audit events of the interpreter, or a payload's file), on an input that takes too long, and on
memory. The same seed gives the same inputs. `main` is a command line for one target.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from scanner.errors import LorascopeError

MAX_SECONDS = 10.0
MAX_GROWTH_BYTES = 512 * 2**20
FORBIDDEN = frozenset({
    "compile", "ctypes.dlopen", "exec", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.system",
    "pickle.find_class", "socket.connect", "subprocess.Popen", "urllib.Request",
})  # fmt: skip
"""Audit events that no reader of a file causes."""

_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**53, 2**63 - 1, 2**64 - 1)


@dataclass(frozen=True)
class Target:
    """One parser under test."""

    name: str
    corpus: Callable[[Path], Sequence[bytes]]
    """Valid and hostile files; takes the path that a payload would create."""
    read: Callable[[Path], object]
    """Reads a file. May raise lorascope's errors and nothing else."""
    tokens: Sequence[bytes] = ()
    """Pieces of the format that mutations insert."""
    finish: Callable[[random.Random, bytes], bytes] | None = None
    """Repairs what would stop a reader at the door (checksums, lengths) after a mutation."""
    file_name: str = "input.bin"
    allowed: frozenset[str] = frozenset()
    """Audit events that this parser causes by design."""


@dataclass
class Outcome:
    """What a run saw."""

    target: str
    seed: int
    inputs: int = 0
    results: Counter[str] = field(default_factory=Counter)
    """Type of the exception, or "read", with its count."""
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    growth_bytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.results.most_common())
        return (
            f"{self.target}: {self.inputs:,} inputs of seed {self.seed} in {self.seconds:.0f} s, slowest "
            f"{self.slowest_s:.2f} s, memory grew by {self.growth_bytes / 2**20:.0f} MiB at most; {counts}; "
            f"{len(self.failures)} failures"
        )


class _Watch:
    """Counts forbidden audit events while it is on. A hook can never be removed, so there is one."""

    on = False
    events: ClassVar[Counter[str]] = Counter()
    installed = False

    @classmethod
    def install(cls) -> None:
        if not cls.installed:
            sys.addaudithook(cls._hook)
            cls.installed = True

    @classmethod
    def _hook(cls, event: str, _: tuple[object, ...]) -> None:
        if cls.on and event in FORBIDDEN:
            cls.events[event] += 1


def mutate(rng: random.Random, data: bytes, corpus: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """One to eight random edits."""
    edited = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(edited) + 1)
        # Headers lie at both ends: half of the edits go there.
        if edited and rng.random() < 0.5:
            at = rng.choice((rng.randrange(min(len(edited), 256)), max(0, len(edited) - 1 - rng.randrange(256))))
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 1024)), len(edited) - at)
        match rng.randrange(9):
            case 0 if at < len(edited):
                edited[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(edited):
                edited[at] = rng.randrange(256)
            case 2:
                del edited[at : at + length]
            case 3:
                edited[at:at] = edited[at : at + length] * rng.choice((1, 2, 16))
            case 4:
                other = rng.choice(corpus)
                begin = rng.randrange(len(other) + 1)
                edited[at : at + rng.choice((0, length))] = other[begin : begin + rng.choice((4, 64, 4096))]
            case 5:
                del edited[at:]
            case 6 if tokens:
                edited[at : at + rng.choice((0, length))] = rng.choice(tokens)
            case 7:
                width = rng.choice((1, 2, 4, 8))
                value = rng.choice(_EDGES) % 256**width
                edited[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
            case _:
                edited[at:at] = rng.randbytes(length)
    return bytes(edited[: 2**22])


def _resident_peak(*, reset: bool = False) -> int:
    """Peak of resident memory since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def run(target: Target, *, seed: int, inputs: int | None = None, seconds: float | None = None) -> Outcome:
    """Fuzz for a number of inputs or a time, the unchanged corpus first."""
    _Watch.install()
    rng = random.Random(seed)
    outcome = Outcome(target.name, seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        marker, path = Path(folder) / "it_ran", Path(folder) / target.file_name
        corpus = list(target.corpus(marker))
        path.write_bytes(corpus[0])
        _read(target, path, marker, Outcome("", 0))  # imports and caches are made before anything is watched
        before = _resident_peak(reset=True)
        while True:
            index = outcome.inputs
            if inputs is not None and index >= inputs:
                break
            if seconds is not None and time.monotonic() - start >= seconds:
                break
            if index < len(corpus):
                data = corpus[index]
            else:
                data = mutate(rng, rng.choice(corpus), corpus, target.tokens)
                data = target.finish(rng, data) if target.finish else data
            path.unlink()  # a mapping that an earlier result still holds must keep its bytes
            path.write_bytes(data)
            _read(target, path, marker, outcome)
            outcome.inputs += 1
        outcome.growth_bytes = max(0, _resident_peak() - before)
    if outcome.growth_bytes > MAX_GROWTH_BYTES:
        outcome.failures.append(f"memory grew by {outcome.growth_bytes:,} bytes")
    outcome.seconds = time.monotonic() - start
    return outcome


def _read(target: Target, path: Path, marker: Path, outcome: Outcome) -> None:
    begin = time.monotonic()
    name, why = "read", ""
    _Watch.events.clear()
    _Watch.on = True
    try:
        target.read(path)
    except LorascopeError as error:
        name = type(error).__name__
    except Exception as error:  # noqa: BLE001 - this is what a fuzzer is for
        name, why = type(error).__name__, traceback.format_exc(limit=-6)
    finally:
        _Watch.on = False
    took = time.monotonic() - begin
    outcome.results[name] += 1
    outcome.slowest_s = max(outcome.slowest_s, took)
    if took > MAX_SECONDS:
        why += f"took {took:.1f} s"
    if caused := {event: count for event, count in _Watch.events.items() if event not in target.allowed}:
        why += f"caused {caused}"
    if marker.exists():
        why += "the payload ran"
        marker.unlink()
    if why and len(outcome.failures) < 20:
        outcome.failures.append(f"input {outcome.inputs} of seed {outcome.seed}: {why}")
        keep = Path(tempfile.gettempdir()) / f"fuzz-{target.name}-{outcome.seed}-{outcome.inputs}.bin"
        keep.write_bytes(path.read_bytes())


def main(targets: Sequence[Target], arguments: Sequence[str] | None = None) -> int:
    """`--seconds`, `--seed`: fuzz the targets in turn. 1 when anything failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[target.name for target in targets], help="one of the targets")
    options = parser.parse_args(arguments)
    targets = [target for target in targets if options.only in (None, target.name)]
    faulthandler.dump_traceback_later(options.seconds * len(targets) + 120, exit=True, file=sys.__stderr__)
    failed = False
    for target in targets:
        outcome = run(target, seed=options.seed, seconds=options.seconds)
        print(outcome, flush=True)
        for failure in outcome.failures:
            print(f"  {failure}", flush=True)
        failed |= bool(outcome.failures)
    faulthandler.cancel_dump_traceback_later()
    return int(failed)
