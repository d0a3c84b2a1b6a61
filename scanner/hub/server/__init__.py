"""A folder of repos as a local Hub, over real HTTP: for registries without internet, demos and tests.

    with running_hub(Path("registry")) as hub:
        HfApi(endpoint=hub.endpoint).list_models(filter="peft")

What it serves follows the disk: a changed file is a new commit at the next request. `HubServer.faults` makes
things go wrong on purpose (quota, 5xx, dropped, cut and tampered downloads).
"""

from __future__ import annotations

from scanner.hub.server import actions
from scanner.hub.server.faults import Fault, FaultBoard, load_faults
from scanner.hub.server.run import DEFAULT_PORT, HubServer, running_hub, serve

__all__ = ["DEFAULT_PORT", "Fault", "FaultBoard", "HubServer", "actions", "load_faults", "running_hub", "serve"]
