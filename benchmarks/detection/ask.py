"""One cohort's base, resident, and what the detectors besides the search say about its adapters."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.detection.search import PROFILES, TEXTS, base_folder
from benchmarks.detection.study import study_rates, study_statistics
from benchmarks.weights.bare import WEIGHTS
from benchmarks.weights.processes import run_measured
from benchmarks.weights.sentry import Sentry
from scanner.adapter import AdapterView, open_safetensors, parse_config, read_json_object, view_adapter
from scanner.calibration import BatteryEvidence, Policy, judge_behaviour, p_by_itself
from scanner.errors import ProbeCrashedError, SkipError
from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION, PrefixRun
from scanner.probe import Probe, load_probe
from scanner.weights import scan_weights

__all__ = ["WEIGHT_FEATURES", "Asked", "Clock", "Resident", "ask_sentry", "ask_weights", "load_probes", "open_adapter"]

WEIGHT_FEATURES = ("global_frobN_std", "global_frobN_mean", "mlp_frobN_mean")
MAX_RANK = 4_096
_SMALL_TEXTS, _SMALL_STEP = 2, 10


def load_probes(*, small: bool = False) -> dict[str, Probe]:
    """The two batteries with their texts; `small` is a tenth of their strings."""
    probes = {name: load_probe(name, None, _SMALL_TEXTS if small else TEXTS) for name in ("V", "broad")}
    if not small:
        return probes
    shorter = {name: replace(one.battery, cases=one.battery.cases[::_SMALL_STEP]) for name, one in probes.items()}
    return {name: replace(one, battery=shorter[name]) for name, one in probes.items()}


@dataclass
class Clock:
    """Wall and processor seconds of a block."""

    figures: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time what is done inside."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.figures = {
            "seconds": round(time.perf_counter() - wall, 3),
            "processor_seconds": round(time.process_time() - processor, 3),
        }


def open_adapter(folder: Path) -> AdapterView:
    """An adapter as the search opens it; its head may stay unexplained."""
    config = parse_config(read_json_object(folder / "adapter_config.json", 1 << 20))
    return view_adapter(open_safetensors(folder / WEIGHTS), config, MAX_RANK)


@dataclass(frozen=True)
class Asked:
    """What one battery got of one adapter."""

    profile: str
    runs: tuple[PrefixRun, ...]
    n_classes: int | None
    labels: tuple[str, ...]

    def judged(self, probe: Probe, policy: Policy) -> BatteryEvidence:
        """The product's judgement of it."""
        n_attack_texts, labels = len(probe.texts), self.labels
        return judge_behaviour(
            self.runs, policy, self.profile, n_classes=self.n_classes, n_attack_texts=n_attack_texts, labels=labels
        )


class Resident:
    """A cohort's base with batteries V and `broad`.

    Args:
        cohort: whose adapters are asked.
        probes: `V` and `broad`.
    """

    def __init__(self, cohort: str, probes: Mapping[str, Probe]) -> None:
        self._cohort, self._probes = cohort, probes
        self._ask: dict[str, Callable[[AdapterView], Asked]] = {}
        if PROFILES[cohort] == SEQUENCE_CLASSIFICATION:
            from scanner.probe.base import load_classifier

            classifiers = load_classifier(base_folder(cohort), "cpu")
            self._ask = {name: _of_classifier(classifiers, probe) for name, probe in self._probes.items()}
        else:
            from scanner.probe.base import load_base

            base, hint = load_base(base_folder(cohort), "cpu"), LABEL_WORDS if cohort == "label_words" else ""
            self._ask = {name: _of_causal(base, probe, hint) for name, probe in self._probes.items()}

    def study(self, view: AdapterView) -> dict[str, Any]:
        """The study's statistics, or a `reason` why there are none."""
        if PROFILES[self._cohort] == GENERATIVE:
            return {"reason": study_rates((), GENERATIVE, 0).reason}
        asked, clock = self.timed("V", view)
        if asked is None:
            return clock
        found = study_rates(asked.runs, asked.profile, len(self._probes["V"].texts))
        rates = [[run.prefix, round(rate, 6)] for run, rate in found.rates]
        told = {"reason": found.reason} if found.reason else {"statistics": study_statistics(found), "rates": rates}
        return clock | told | {"forward_passes": self._passes(asked)}

    def broad(self, view: AdapterView, policy: Policy) -> dict[str, Any]:
        """The product's judgement of its default battery, as of one adapter scanned alone."""
        asked, clock = self.timed("broad", view)
        if asked is None:
            return clock
        evidence = asked.judged(self._probes["broad"], policy)
        first = evidence.prefixes[0] if evidence.prefixes else None
        return clock | {
            "profile": asked.profile,
            "p_value": evidence.p_value,
            "p_alone": p_by_itself(evidence, policy),
            "flagged": first is not None and evidence.p_value <= policy.q,
            "prefix": first.prefix if first else None,
            "position": first.position if first else None,
            "attack_rate": first.attack_rate if first else None,
            "worst_control": evidence.worst_control,
            "brittle": len(evidence.brittle),
            "shifts": len(evidence.shifts),
            "forward_passes": self._passes(asked),
        }

    def timed(self, battery: str, view: AdapterView) -> tuple[Asked | None, dict[str, Any]]:
        """What one battery got, and its seconds; None and the `reason` where the adapter cannot be asked."""
        clock = Clock()
        try:
            with clock.running():
                asked = self._ask[battery](view)
        except ProbeCrashedError:
            raise
        except SkipError as error:
            return None, {"reason": f"{error.code}: {error.message}"}
        return asked, dict(clock.figures)

    @staticmethod
    def _passes(asked: Asked) -> int:
        """Texts times cases; a free answer, whatever its length, counts once."""
        return sum(len(run.answers) for run in asked.runs)


def _of_classifier(base: Any, probe: Any) -> Callable[[AdapterView], Asked]:
    from scanner.probe.classifier import ClassifierProbe

    classifiers = ClassifierProbe(base, probe)

    def ask(view: AdapterView) -> Asked:
        seen = classifiers.run(view)
        return Asked(SEQUENCE_CLASSIFICATION, seen.runs, seen.n_classes, ())

    return ask


def _of_causal(base: Any, probe: Any, hint: str) -> Callable[[AdapterView], Asked]:
    from scanner.probe.causal import CausalProbe

    answers = CausalProbe(base, probe)

    def ask(view: AdapterView) -> Asked:
        seen = answers.run(view, hint)
        return Asked(seen.profile, seen.runs, None, seen.labels)

    return ask


def ask_weights(view: AdapterView) -> dict[str, Any]:
    """The study's weight features; None where an adapter has no module of that kind."""
    clock = Clock()
    with clock.running():
        features = scan_weights(view.updates).features
    return clock.figures | {"features": {name: features.get(name) for name in WEIGHT_FEATURES}}


def ask_sentry(folder: Path, sentry: Sentry | str) -> dict[str, Any]:
    """AdapterSentry's verdict and its concentration z, or the `reason` why it was not asked.

    z is None where no family of modules is large enough for a comparison within the adapter.
    """
    if isinstance(sentry, str):
        return {"reason": sentry}
    cost, output = run_measured(sentry.scan(folder / WEIGHTS, "--format", "json"))
    report = json.loads(output)
    intra = report["anomaly"]["intra"]
    return {
        "version": sentry.version,
        "action": report["verdict"]["action"],
        "codes": _codes(report["verdict"]["reasons"]),
        "concentration_z": intra["max_concentration_z"] if intra else None,
        "seconds": round(cost.wall_s, 3),
        "processor_seconds": round(cost.cpu_s, 3),
    }


def _codes(reasons: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({reason["code"] for reason in reasons})
