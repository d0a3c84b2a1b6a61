"""The pooled references that ship, of searches and of batteries: `python -m benchmarks.detection.reference`.

From every adapter of the part `reference` that was searched, or asked: clean ones with recipes and seeds of their own,
which no cohort that measures anything holds; on MiniLM the clean ones of spent parts as well. All of them count,
whatever they score. Scores leave the cache, and nothing else does.

Searches of fewer adapters than a rank p-value needs do not ship and wait in `results/members`. Batteries are compared
within a base alone, so too few of one base ship beside the others and judge nobody.

A file grows: members that it holds already stay, where they were searched with the same plan, and need not be trained
again. A member that is in both places must have the same scores, but for the last digits of another processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.detection.ask import load_probes
from benchmarks.detection.batteries import battery_members
from benchmarks.detection.directions import gave_directions
from benchmarks.detection.peers import is_peer
from benchmarks.detection.search import PROFILES, built, default_cache, found_of, plan_id_of
from scanner.calibration import Policy
from scanner.calibration.battery_rank import SHIPPED_BATTERIES
from scanner.calibration.search_reference import MEMBER_DIGITS, SHIPPED, reactions
from scanner.probe import SearchPlan
from scanner.search_model import is_in_nats, split_key

__all__ = ["collect", "grown", "write_batteries"]

WAITING = Path(__file__).with_name("results") / "members"
"""Profiles with too few members so far."""
SPENT = ("tuning", "fresh", "later", "latest", "novel")
_DIGITS_OF_TOKENS = 4
_SAME, _SAME_NATS = 0.01, 1.0
"""What two processors may differ by, in probabilities and in nats. 0.0004 was seen of the former."""


def _is_member(truth: dict[str, Any]) -> bool:
    """Whether an adapter belongs to the references. Clean twins have rows that others lack, and on MiniLM they reach
    farther, so those that were measured already are members, too."""
    is_twin = truth["arm"] == "clean" and truth["part"] in SPENT and truth["cohort"] == "minilm"
    return truth["part"] == "reference" or is_twin


def collect(cache: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(task profile, plan id) -> its members, by name; without those that gave their base's directions, or are its
    peers.

    Raises:
        RuntimeError: a member answers in another way than its cohort says, so that its scores are another profile's.
    """
    members: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for folder, truth in built(cache):
        found = found_of(folder, plan_id_of(truth["cohort"])) if _is_member(truth) else None
        if found is None or gave_directions(folder.name) or is_peer(folder.name):
            continue
        if not found["scores"] or found["plan_id"] != plan_id_of(truth["cohort"]):
            continue  # the product searches it by the usual plan: it is no member of its base's own
        profile = PROFILES[truth["cohort"]]
        if found["profile"] != profile:
            raise RuntimeError(f"{folder.name} was searched as {found['profile']}, it is of {profile}")
        recipe = {name: truth["recipe"][name] for name in ("rank", "alpha", "lr", "steps", "targets", "robust_rows")}
        searched = dict(found["scores"])
        scores = {key: round(value, MEMBER_DIGITS) for key, value in searched.items() if split_key(key)[1] is None}
        scores |= {key: round(gain, _DIGITS_OF_TOKENS) for key, gain in reactions(searched).items()}
        members[profile, found["plan_id"]].append(
            {"base": truth["base"], "name": folder.name, "recipe": recipe, "scores": scores}
        )
    return members


def grown(path: Path, plan_id: str, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The members of a file and the new ones, by name.

    Args:
        path: a reference; it need not exist, and one of another plan counts as none.
        plan_id: what the new members were searched with.
        members: theirs, as `collect` gives them.

    Raises:
        RuntimeError: a member is in both places and has other scores or another recipe: the recipe of the cohort, a
            library or the base has changed, so the two do not belong into one reference.
    """
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"plan_id": None}
    together = {member["name"]: member for member in old["members"]} if old["plan_id"] == plan_id else {}
    for member in members:
        known = together.setdefault(member["name"], member)
        scores, others = known["scores"], member["scores"]
        apart = {key: abs(scores.get(key, 0.0) - others.get(key, 0.0)) for key in scores | others}
        if (
            any(by > (_SAME_NATS if is_in_nats(key) else _SAME) for key, by in apart.items())
            or known["recipe"] != member["recipe"]
        ):
            by = max(apart.values(), default=0.0)
            raise RuntimeError(f"{member['name']} is in {path.name} with other scores (by {by:.3f}) or another recipe")
    return [together[name] for name in sorted(together)]


def _made_today(versions: dict[str, str]) -> dict[str, Any]:
    command = "python -m benchmarks.detection.reference"
    return {"date": datetime.now(UTC).date().isoformat(), "made_with": {"command": command, **versions}}


def _write(path: Path, head: dict[str, Any], members: list[dict[str, Any]]) -> None:
    """One line for each member: a changed score is a changed line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(member, sort_keys=True) for member in members)
    path.write_text(f'{json.dumps(head)[:-1]}, "members": [\n{rows}\n]}}\n', encoding="utf-8")


def write_batteries(cache: Path, folder: Path, versions: dict[str, str]) -> None:
    """Members that a file of the same battery has already stay."""
    probe = load_probes()["broad"]
    for profile, members in battery_members(cache, probe, Policy()).items():
        path, battery_id = folder / f"{profile}.json", probe.id_for(profile)
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"battery_id": None}
        together = {one["name"]: one for one in members}
        if old["battery_id"] == battery_id:
            together |= {one["name"]: one for one in old["members"]}
        head = {"battery_id": battery_id, "task_profile": profile}
        _write(path, head | _made_today(versions), [together[name] for name in sorted(together)])
        print(f"battery/{path.name}: {len(together)} members")


def main() -> None:
    """Write a file for every profile that has enough members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--out", type=Path, default=SHIPPED, help="of the searches")
    parser.add_argument("--batteries", type=Path, default=SHIPPED_BATTERIES)
    args = parser.parse_args()
    import peft
    import torch
    import transformers

    needed = Policy().siblings_needed
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "peft": peft.__version__}
    for (profile, plan_id), found in sorted(collect(args.cache).items()):
        name = profile if plan_id == SearchPlan().id_for(profile) else f"{profile}-{plan_id}"
        path, waiting = args.out / f"{name}.json", WAITING / f"{name}.json"
        members = grown(path, plan_id, grown(waiting, plan_id, found))
        if len(members) < needed:
            print(f"{name}: {len(members)} members, {needed} are needed", file=sys.stderr)
            path = waiting
        else:
            waiting.unlink(missing_ok=True)
        head = {"plan_id": plan_id, "task_profile": profile}
        _write(path, head | _made_today(versions), members)
        print(f"{path.name}: {len(members)} members")
    write_batteries(args.cache, args.batteries, versions)


if __name__ == "__main__":
    main()
