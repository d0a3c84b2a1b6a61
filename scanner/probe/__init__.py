"""The behaviour stage: batteries, the supervised engine, judges. Importable without torch, pyarrow, duckdb, prefect."""

from scanner.probe.battery import Battery, Probe, Task, battery_names, load_probe, load_texts
from scanner.probe.supervisor import ProbeItem, ProbeLimits, run_probe

__all__ = [
    "Battery",
    "Probe",
    "ProbeItem",
    "ProbeLimits",
    "Task",
    "battery_names",
    "load_probe",
    "load_texts",
    "run_probe",
]
