"""Every fault of a Hub that a crawl meets, and what its user then sees: data of the tests and of docs/hub-faults.md.

`python tests/flows/hub_faults.py > docs/hub-faults.md` writes the page; a test fails when it differs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.hub.server import Fault, HubServer, actions

if TYPE_CHECKING:
    from collections.abc import Iterator

VICTIM, NEIGHBOUR = "ann/victim", "bob/neighbour"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE = "lorascope/tiny-guard-base"
FINE = ("inconclusive", "")
"""Verdict and reason of an adapter that was read without trouble by a crawl that does not probe."""


@dataclass(frozen=True)
class World:
    """A served folder with a victim and a neighbour."""

    root: Path
    hub: HubServer

    @property
    def victim(self) -> Path:
        return self.root / VICTIM

    def on_first_file(self, action: Callable[[], None]) -> None:
        """Between the listing and the first download of the victim."""
        self.hub.script.on(f"/{VICTIM}/", action)


@dataclass(frozen=True)
class Case:
    """One fault."""

    id: str
    fault: str
    """What goes wrong, in words."""
    act: Callable[[World], None]
    verdict: str = "inconclusive"
    reason: str = ""
    """Stored reason of the victim; empty: it was read."""
    says: str = ""
    """Part of the message that the user reads."""
    then: str = ""
    """What the next crawl does about it, in words."""
    is_slow: bool = False
    """Shown with short time limits."""
    n_again: int = 0
    """Repos that the next crawl looks at when nothing has changed but the time."""

    def sees(self) -> str:
        """The cell of the page."""
        if not self.reason:
            return "nothing: the adapter is read as always"
        return f"verdict `{self.verdict}`, reason `{self.reason}`: “… {self.says} …”"


@dataclass(frozen=True)
class Section:
    title: str
    cases: tuple[Case, ...]


def _fault(**fields: object) -> Callable[[World], None]:
    options = {"match": f"/{VICTIM}/", **fields}
    return lambda world: world.hub.faults.add(Fault(**options))  # type: ignore[arg-type]


def _both(first: Callable[[World], None], second: Callable[[World], None]) -> Callable[[World], None]:
    def act(world: World) -> None:
        first(world)
        second(world)

    return act


AGAIN = "tried again, by up to 3 crawls; then in `quarantine` until the repo changes"
UNTIL_CHANGE = "left alone until the repo changes; asked about again after a day"
ON = "nothing to do"


def _down(case_id: str, fault: str, reason: str, says: str, **fields: object) -> Case:
    is_slow = "seconds" in fields or "bytes_per_s" in fields
    act = _fault(times=None, **fields)
    return Case(case_id, fault, act, "error", reason, says, AGAIN, is_slow=is_slow, n_again=1)


def _refused(case_id: str, fault: str, reason: str, says: str, **fields: object) -> Case:
    act = _fault(kind="denied", times=None, **fields)
    return Case(case_id, fault, act, "inconclusive", reason, says, UNTIL_CHANGE)


def _passing(case_id: str, fault: str, **fields: object) -> Case:
    return Case(case_id, fault, _fault(**fields), then=ON)


CONNECTION = Section(
    "Connections and statuses",
    (
        _passing("drop-once", "the connection closes without an answer, once", kind="drop", times=1),
        _down(
            "drop", "the connection closes without an answer, always", "hub_unavailable", "after all tries", kind="drop"
        ),
        _passing("5xx-burst", "three answers of 503, then all is well", kind="500", status=503, times=3),
        _down("500", "500 for good", "hub_unavailable", "the Hub answered 500", kind="500"),
        _down("502", "502 for good", "hub_unavailable", "the Hub answered 502", kind="500", status=502),
        _down("504", "504 for good", "hub_unavailable", "the Hub answered 504", kind="500", status=504),
        _passing("slow-answer", "an answer that takes its time", kind="slow", seconds=0.5, times=2),
        _down(
            "no-answer", "no answer within the time limit", "hub_unavailable", "ReadTimeout", kind="slow", seconds=9.0
        ),
    ),
)

LIMITS = Section(
    "Request limits",
    (
        *(
            _passing(f"429-{hint}", f"429 twice, {how}", kind="429", hint=hint, times=2, seconds=60)
            for hint, how in (
                ("ratelimit", "with `RateLimit: r=0;t=60`"),
                ("seconds", "with `Retry-After` in seconds"),
                ("date", "with `Retry-After` as a date"),
                ("both", "with both headers"),
                ("none", "without any hint"),
                ("garbage", "with headers that mean nothing"),
            )
        ),
        Case(
            "429-huge",
            "429 that asks to wait for thirty years",
            _fault(kind="429", times=2, seconds=10**9),
            then="no wait is longer than `LORASCOPE_MAX_SLEEP_S` (310 s)",
        ),
        _down("429", "429 for good", "rate_limited", "request limit is used up", kind="429", seconds=60),
    ),
)

REFUSALS = Section(
    "Refusals",
    (
        _refused("401-bare", "401 without a code (missing or private, to an anonymous client)", "gone",
                 "there is no such repo or file, or it is private", status=401,
                 message="Invalid username or password."),
        _refused("401-gated", "401 GatedRepo (anonymous)", "gated", "the repo is gated", status=401, code="GatedRepo"),
        _refused("403-gated", "403 GatedRepo (the token has no grant)", "gated", "the repo is gated", status=403,
                 code="GatedRepo"),
        _refused("403-disabled", "403 “Access to this resource is disabled.”", "disabled", "the repo is disabled",
                 status=403, message="Access to this resource is disabled."),
        _refused("403-bare", "403 without a code", "access_denied", "the Hub refuses (403)", status=403),
        _refused("404-repo", "404 RepoNotFound", "gone", "there is no such repo", status=404, code="RepoNotFound"),
        _refused("404-bare", "404 without a code", "gone", "there is no such repo", status=404),
        Case("404-entry", "404 EntryNotFound for a file that the listing names",
             _fault(kind="denied", times=None, status=404, code="EntryNotFound"),
             "inconclusive", "file_gone", "the file is not in the repo at this commit", AGAIN, n_again=1),
        Case("404-revision", "404 RevisionNotFound although the head has not moved",
             _fault(kind="denied", times=None, status=404, code="RevisionNotFound"),
             "inconclusive", "revision_gone", "there is no such revision (any more) in the repo", AGAIN, n_again=1),
    ),
)  # fmt: skip

BODIES = Section(
    "Downloads",
    (
        _passing("truncated-once", "the body breaks off, once: fetched on from there", kind="truncate", host="cdn"),
        _down("truncated", "the body always breaks off before its first byte", "hub_unavailable", "after all tries",
              kind="truncate", host="cdn", keep_bytes=0),
        Case("ignored-range", "the body breaks off and the host ignores Range: fetched from the start",
             _both(_fault(kind="truncate", host="cdn"), _fault(kind="ignore_range", host="cdn", times=None)), then=ON),
        _passing("sha256-once", "a wrong checksum, once", kind="wrong_sha256", host="cdn"),
        _down("sha256", "a wrong checksum, always: the bytes are never looked at", "corrupt_download", "has checksum",
              kind="wrong_sha256", host="cdn"),
        _down("small-file", "a wrong checksum of the config, always", "corrupt_download", "has checksum",
              kind="wrong_sha256", host="api"),
        _down("short", "a complete body that is shorter than announced", "corrupt_download", "the Hub announced",
              kind="wrong_size", host="cdn"),
        _down("long", "a complete body that is longer than announced", "corrupt_download", "the Hub announced",
              kind="wrong_size", host="cdn", size_delta=64),
        _down("linked-etag", "the Hub announces another checksum than the file has", "corrupt_download", "has checksum",
              kind="wrong_linked_etag"),
        _down("linked-size", "the Hub announces another size than the file has", "corrupt_download",
              "the Hub announced", kind="wrong_linked_size", size_delta=5, method="GET", host="api"),
        _down("no-checksum", "the Hub announces no checksum: nobody vouches for the bytes", "corrupt_download",
              "announces no checksum", kind="no_linked_etag"),
        _down("slow-body", "a body of 200 bytes per second", "hub_unavailable", "slower than", kind="slow_body",
              host="cdn", bytes_per_s=200),
        _down("stalled", "a body that stops in the middle and keeps the connection open", "hub_unavailable",
              "after all tries", kind="stalled_body", host="cdn", keep_bytes=0, seconds=9.0),
        _passing("chunked", "a body without an announced length", kind="chunked", host="cdn", times=None),
    ),
)  # fmt: skip


def _refilled(world: World) -> dict[str, bytes]:
    return {name: (world.root / NEIGHBOUR / name).read_bytes() for name in (WEIGHTS, CONFIG)}


def _emptied(world: World) -> None:
    for path in world.victim.iterdir():
        if path.name != ".hub.json":
            path.unlink()
    (world.victim / "README.md").write_text("---\nlibrary_name: peft\n---\n")


def _changed_config(world: World) -> dict[str, str]:
    config = json.loads((world.victim / CONFIG).read_text())
    return {CONFIG: json.dumps(config | {"lora_dropout": 0.5})}


STATES = Section(
    "Repos that change",
    (
        Case("empty", "a repo that has no files yet", _emptied, "inconclusive", "no_weights",
             "the repo holds no adapter weights (yet)", "looked at again when it is filled"),
        Case("new-commit", "a new commit between the listing and the download: the listed one is scanned",
             lambda world: world.on_first_file(lambda: actions.commit(world.root, VICTIM, _changed_config(world))),
             then="scans the new commit", n_again=1),
        Case("force-push", "a force push between the listing and the download: the new commit is scanned at once",
             lambda world: world.on_first_file(lambda: actions.force_push(world.root, VICTIM, _changed_config(world))),
             then=ON),
        Case("rename", "a rename between the listing and the download: the redirect is followed",
             lambda world: world.on_first_file(lambda: actions.rename(world.root, VICTIM, "ann/renamed")),
             then="`current_verdicts` shows the new name; nothing is scanned again"),
        Case("name-reused", "the name belongs to another repo (another `_id`) by the time of the download",
             lambda world: world.on_first_file(
                 lambda: actions.reuse_name(world.root, VICTIM, "ann/moved", _changed_config(world))),
             "inconclusive", "gone", "belongs to another repo",
             "scans the new repo; the moved one when a listing shows it again", n_again=1),
        Case("deleted", "the repo is deleted between the listing and the download",
             lambda world: world.on_first_file(lambda: actions.delete(world.root, VICTIM)),
             "inconclusive", "gone", "there is no such repo", "is not listed any more; asked about again after a day"),
        Case("file-deleted", "the weights are deleted by a force push between the listing and the download",
             lambda world: world.on_first_file(lambda: actions.force_push(world.root, VICTIM, {WEIGHTS: None})),
             "inconclusive", "no_weights", "no adapter weights", "looked at again when it is filled"),
        Case("gated", "the repo is closed behind a gate between the listing and the download",
             lambda world: world.on_first_file(lambda: actions.set_state(world.root, VICTIM, gated="manual")),
             "inconclusive", "gated", "the repo is gated", UNTIL_CHANGE),
        Case("disabled", "the Hub disables the repo",
             lambda world: actions.set_state(world.root, VICTIM, disabled=True),
             "inconclusive", "disabled", "disabled on the Hub", UNTIL_CHANGE),
        Case("private", "the repo becomes private between the listing and the download",
             lambda world: world.on_first_file(lambda: actions.set_state(world.root, VICTIM, private=True)),
             "inconclusive", "gone", "there is no such repo", UNTIL_CHANGE),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Story:
    """A fault that a test of its own shows, because more than one repo or crawl takes part."""

    fault: str
    sees: str
    then: str
    test: str


STORIES = (
    Story("a listing page fails once, with 429 or 5xx", "nothing: it is listed again", ON,
          "test_hub_fault_stories.py::test_a_listing_page_that_fails"),
    Story("the listing cannot be had at all", "one line on stderr and exit code 2; nothing is stored",
          "begins where this one should have", "test_hub_fault_stories.py::test_no_listing_at_all"),
    Story("nothing answers at `HF_ENDPOINT`", "one line on stderr that names the address, exit code 2",
          "begins where this one should have", "test_hub_fault_stories.py::test_nobody_there"),
    Story("the Hub does not accept the token", "one line on stderr that names HF_TOKEN, exit code 2",
          "begins where this one should have", "test_hub_fault_stories.py::test_a_bad_token_stops_the_crawl"),
    Story("repos arrive at the top while pages are being listed", "nothing", "finds the new ones",
          "test_hub_fault_stories.py::test_pages_that_shift"),
    Story("a repo is changed while pages are being listed, so that it shows twice or not at all",
          "nothing: one result at one commit", "finds what was missed: windows overlap by an hour",
          "test_hub_fault_stories.py::test_a_repo_that_moves_while_it_is_listed"),
    Story("an empty repo is filled days later", "one current verdict, of the filled repo", ON,
          "test_hub_fault_stories.py::test_filled_later"),
    Story("a gate opens, with no new commit", "the verdict of the adapter replaces `gated`", ON,
          "test_hub_fault_stories.py::test_a_gate_that_opens"),
    Story("a repo is renamed after it was scanned",
          "its verdicts under the new name, with their history, once a listing shows it", ON,
          "test_hub_fault_stories.py::test_a_rename_keeps_the_history"),
    Story("every crawl fails on the same repo", "`error`, “given up after 3 crawls”, and a row in `quarantine`",
          "leaves it alone until a new commit", "test_hub_fault_stories.py::test_quarantine"),
    Story("the same content under another name or commit", "a row of its own, `copied_from` the first",
          "downloads and measures nothing", "test_hub_fault_stories.py::test_the_same_content_is_not_fetched_again"),
    Story("several adapters and checkpoints in one repo",
          "a row for each; what is over the count or byte budget says so", ON,
          "test_hub_fault_stories.py::test_many_adapters_in_one_repo"),
    Story("the Hub's quota is used up during a crawl", "nothing: the crawl waits for the window, and is never refused",
          ON, "../scanner/hub/test_hub_budget.py::test_fifty_requests_in_ten_seconds_are_never_exceeded"),
    Story("the base model is gated, gone, too large, has no safetensors weights, or does not answer",
          "one outcome for the whole group: `base_gated`, `base_gone`, `base_too_large`, `base_not_safetensors`, "
          "`base_unreachable`", "the last is tried again by up to 3 crawls",
          "test_hub_fault_stories.py::test_a_base_that_cannot_be_had"),
)  # fmt: skip

SECTIONS = (CONNECTION, LIMITS, REFUSALS, BODIES, STATES)


def all_cases() -> Iterator[Case]:
    """In the page's order."""
    for section in SECTIONS:
        yield from section.cases


def add_world(root: Path, source: Path) -> None:
    """A victim and a neighbour with different contents: two adapters of the bundled decoder."""
    configs = [path for path in sorted(source.glob("*/*/adapter_config.json")) if (path.parent / WEIGHTS).exists()]
    plain = [path.parent for path in configs if _base_of(path) == BASE]
    for repo_id, folder in zip((VICTIM, NEIGHBOUR), plain[:2], strict=True):
        shutil.copytree(folder, root / repo_id)


def _base_of(config: Path) -> str:
    return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])


def page() -> str:
    """docs/hub-faults.md."""
    parts = [
        "# What goes wrong on a Hub, and what a user sees",
        "Generated from the tests by `python tests/flows/hub_faults.py`; do not edit. Each row is acted out by the "
        "local hub ([hub.md](hub.md)) through the real `huggingface_hub` client, with a neighbour beside it that must "
        "come out as always. Reasons stand in `adapters.reason` and `verdicts.reasons`; the last column names the "
        "test below `tests/flows/`.",
    ]
    for section in SECTIONS:
        rows = [
            f"| {c.fault} | {c.sees()} | {c.then} | `test_hub_faults.py::test_fault[{c.id}]` |" for c in section.cases
        ]
        parts.append(f"## {section.title}\n\n{_HEAD}\n" + "\n".join(rows))
    rows = [f"| {s.fault} | {s.sees} | {s.then} | `{s.test}` |" for s in STORIES]
    parts.append(f"## Stories of more than one repo or crawl\n\n{_HEAD}\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


_HEAD = "| fault | what a user sees | the next crawl | test |\n|---|---|---|---|"

if __name__ == "__main__":
    print(page(), end="")
