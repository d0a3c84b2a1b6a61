"""The clock over the probe's children: starts them, side by side where there are several, and says how each ended.

A child that is killed, hangs or runs out of memory costs the adapter that it was working on; a new child goes on
with the rest, until several in a row have died: then it is the base's fault, and the rest is given up. No torch in this
process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanner.model import SEQUENCE_CLASSIFICATION, Outcome
from scanner.probe.battery import Probe
from scanner.probe.child import ProbeItem, ProbeLimits, next_event, start_child
from scanner.probe.search import SearchPlan

__all__ = ["Answer", "run_children"]

MAX_DEATHS_IN_A_ROW = 3
"""A base or template that kills every probe must not cost the time limit once for each adapter."""
GAVE_UP = f"gave_up: {MAX_DEATHS_IN_A_ROW} probes in a row died"
"""Reason of the adapters that were not tried any more: not at once, as after a death, but by the next crawls."""
WORTH_A_CHILD = 4
"""Adapters for which another child is started: it costs several seconds before it asks the first one."""
_FAILURES = ("oom", "nan_logits", "probe_failed", "base_too_large")
"""Codes of refusals that say nothing of what lorascope can read: outcome error, not unsupported."""


@dataclass(frozen=True)
class Answer:
    """What became of one adapter: the child's result, or an outcome with its reason."""

    outcome: Outcome = Outcome.PASS
    reason: str = ""
    event: dict[str, Any] | None = None
    device: str = ""
    dtype: str = ""


def run_children(
    base_dir: Path,
    probe: Probe,
    items: Sequence[ProbeItem],
    limits: ProbeLimits,
    plan: SearchPlan | None,
    report: Callable[[ProbeItem, Answer], None],
) -> None:
    """Ask the battery about adapters of one base, or search them where there is a plan; tell one answer for each.

    `report` is called on the caller's thread, as answers come in. Language models, and classifiers of texts and of
    tokens, have their own children, one kind after the other: they need the base as different models, and two would
    not fit where one does.
    """
    by_model: dict[tuple[bool, bool], list[ProbeItem]] = {}
    for item in items:
        by_model.setdefault((item.profile == SEQUENCE_CLASSIFICATION, item.per_token), []).append(item)
    for of_model in by_model.values():
        n_lanes = max(1, min(limits.children, len(of_model) // WORTH_A_CHILD))
        if n_lanes == 1:
            _run_lane(base_dir, probe, of_model, limits, plan, report, threading.Event())
        else:
            lanes = [of_model[start::n_lanes] for start in range(n_lanes)]
            _side_by_side(base_dir, probe, lanes, limits, plan, report)


def _side_by_side(
    base_dir: Path,
    probe: Probe,
    lanes: Sequence[Sequence[ProbeItem]],
    limits: ProbeLimits,
    plan: SearchPlan | None,
    report: Callable[[ProbeItem, Answer], None],
) -> None:
    """One child at a time in each lane. Whatever ends this function, no child outlives it."""
    said: queue.Queue[tuple[ProbeItem, Answer] | Future[None]] = queue.Queue()
    stop = threading.Event()

    def tell(item: ProbeItem, answer: Answer) -> None:
        said.put((item, answer))

    with ThreadPoolExecutor(len(lanes), thread_name_prefix="lane") as pool:
        try:
            for items in lanes:
                lane = pool.submit(_run_lane, base_dir, probe, items, limits, plan, tell, stop)
                lane.add_done_callback(said.put)
            running = len(lanes)
            while running:
                one = said.get()
                if isinstance(one, Future):
                    one.result()  # raises what ended the lane
                    running -= 1
                else:
                    report(*one)
        finally:
            stop.set()


def _run_lane(
    base_dir: Path,
    probe: Probe,
    items: Sequence[ProbeItem],
    limits: ProbeLimits,
    plan: SearchPlan | None,
    tell: Callable[[ProbeItem, Answer], None],
    stop: threading.Event,
) -> None:
    told: set[str] = set()

    def report(item: ProbeItem, answer: Answer) -> None:
        told.add(item.adapter_id)
        tell(item, answer)

    waiting = list(items)
    deaths = 0  # since a child last got through an adapter
    while waiting:
        by_id = {item.adapter_id: item for item in waiting}
        current: ProbeItem | None = None
        device = dtype = ""
        deadline = time.monotonic() + limits.base_timeout_s
        child = start_child(base_dir, probe, waiting[: limits.adapters_per_child], limits, plan)
        try:
            while True:
                event, death = next_event(child, deadline, limits, stop)
                if stop.is_set():
                    return
                if event is None:
                    if current is None:  # before the first adapter: the base itself cannot be loaded
                        for item in waiting:
                            report(item, Answer(Outcome.ERROR, f"base_{death}: {child.last_words()}".rstrip(": ")))
                        waiting = []
                    else:
                        if current.adapter_id not in told:  # it may have died between two adapters
                            reason = f"{death}: {child.last_words()}".rstrip(": ")
                            report(current, Answer(Outcome.ERROR, reason, None, device, dtype))
                        waiting = [item for item in waiting if item.adapter_id not in told]
                        deaths += 1
                        if deaths == MAX_DEATHS_IN_A_ROW:
                            for item in waiting:
                                report(item, Answer(Outcome.ERROR, GAVE_UP))
                            waiting = []
                    break
                kind = event["event"]
                if kind == "ready":
                    device, dtype = event["device"], event["dtype"]
                elif kind == "base_failed":
                    for item in waiting:
                        report(item, Answer(*_refusal(event)))
                    waiting = []
                    break
                elif kind == "begin":
                    current = by_id[event["adapter_id"]]
                    deadline = time.monotonic() + limits.adapter_timeout_s
                elif kind == "refused":
                    deaths = 0
                    report(by_id[event["adapter_id"]], Answer(*_refusal(event), None, device, dtype))
                elif kind == "result":
                    deaths = 0
                    report(by_id[event["adapter_id"]], Answer(event=event, device=device, dtype=dtype))
                elif kind == "done":
                    waiting = [item for item in waiting if item.adapter_id not in told]
                    break
        finally:
            child.kill()
            child.errors.close()


def _refusal(event: dict[str, Any]) -> tuple[Outcome, str]:
    outcome = Outcome.ERROR if event["code"] in _FAILURES else Outcome.UNSUPPORTED
    return outcome, f"{event['code']}: {event['message']}"[:300]
