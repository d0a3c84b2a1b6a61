"""Prefect's settings for runs started from the command line. Call before Prefect is imported."""

from __future__ import annotations

import os

__all__ = ["configure_prefect"]


def configure_prefect() -> None:
    """Defaults that a user's own environment overrides: quiet, no telemetry, JSON results, patient server start."""
    for name, value in {
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",  # its event worker writes pages when the server is gone
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
    }.items():
        os.environ.setdefault(name, value)
