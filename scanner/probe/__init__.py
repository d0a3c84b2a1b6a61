"""The behaviour stage: batteries, the supervised engine, judges. Importable without torch, pyarrow, duckdb, prefect."""

from scanner.probe.battery import (
    DEFAULT_BATTERY,
    Battery,
    Case,
    Probe,
    Task,
    battery_names,
    load_probe,
    load_texts,
    probe_for,
)
from scanner.probe.search import SearchPlan, plan_for, plans_id
from scanner.probe.supervisor import ProbeItem, ProbeLimits, run_probe, run_search

__all__ = [
    "DEFAULT_BATTERY",
    "Battery",
    "Case",
    "Probe",
    "ProbeItem",
    "ProbeLimits",
    "SearchPlan",
    "Task",
    "battery_names",
    "load_probe",
    "load_texts",
    "plan_for",
    "plans_id",
    "probe_for",
    "run_probe",
    "run_search",
]
