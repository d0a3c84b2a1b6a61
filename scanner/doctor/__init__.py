"""Is everything there that a scan needs? Checks that look, tell, and never raise."""

from scanner.doctor.check import Check, Group, Outcome, one, run_groups, worst
from scanner.doctor.child import CHILD_LIMIT_S, ask_child
from scanner.doctor.device import check_device
from scanner.doctor.disk import check_disks
from scanner.doctor.hub import HUB_NAMES, check_hub
from scanner.doctor.store import check_store_writable
from scanner.doctor.versions import VERSION_NAMES, check_versions, installed_versions

__all__ = [
    "CHILD_LIMIT_S",
    "HUB_NAMES",
    "VERSION_NAMES",
    "Check",
    "Group",
    "Outcome",
    "ask_child",
    "check_device",
    "check_disks",
    "check_hub",
    "check_store_writable",
    "check_versions",
    "installed_versions",
    "one",
    "run_groups",
    "worst",
]
