"""The Hub checks against the local hub over HTTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scanner.doctor import HUB_NAMES, Check, Outcome, check_hub
from scanner.doctor.hub import TokenScope, token_scope
from scanner.hub.server import Fault, HubServer, running_hub
from scanner.settings import Settings

TOKENS = {"hf_goodgood": "write", "hf_readread": "read", "hf_finefine": "fineGrained"}


@pytest.fixture
def hub(registry: Path) -> Iterator[HubServer]:
    with running_hub(registry, tokens=TOKENS, quotas={"all": 50}) as server:
        yield server


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert tuple(check.name for check in checks) == HUB_NAMES
    return {check.name: check for check in checks}


def test_without_a_token(hub: HubServer) -> None:
    found = by_name(check_hub(Settings(), hub.endpoint))
    assert [check.outcome for check in found.values()] == [Outcome.OK] * 3
    assert "49 requests" in found["hub budget"].message
    assert "anonymous" in found["token"].message and "49" in found["token"].message
    assert [path for _, path, _ in hub.request_log] == ["/api/models"]


@pytest.mark.parametrize(
    ("token", "outcome", "words"),
    [
        ("hf_goodgood", Outcome.WARNING, "local-user may write"),
        ("hf_readread", Outcome.OK, "local-user may read"),
        ("hf_finefine", Outcome.OK, "fine-grained"),
        ("hf_badbad", Outcome.ERROR, "does not accept it"),
    ],
)
def test_tokens(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str, outcome: Outcome, words: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    found = by_name(check_hub(Settings(), hub.endpoint))
    assert found["hub"].outcome is Outcome.OK
    assert found["token"].outcome is outcome and words in found["token"].message
    assert bool(found["token"].advice) == (outcome is not Outcome.OK)
    assert token not in str(found)


def test_a_nearly_and_a_wholly_used_up_budget_are_warnings(registry: Path) -> None:
    with running_hub(registry, quotas={"all": 2}, window_s=600) as server:
        few = by_name(check_hub(Settings(), server.endpoint))
        assert few["hub budget"].outcome is Outcome.WARNING and "only 1 requests" in few["hub budget"].message
        check_hub(Settings(), server.endpoint)
        # Asked although the last answer said that nothing is left: the check does not wait for the next window.
        none = by_name(check_hub(Settings(), server.endpoint))
    assert none["hub"].outcome is Outcome.OK and none["hub budget"].outcome is Outcome.WARNING
    assert "used up" in none["hub budget"].message and none["hub budget"].advice


def test_a_hub_without_rate_limit_headers(tmp_path: Path) -> None:
    # Python's own file server tells nothing about limits.
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "models").write_text("[]")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = by_name(check_hub(Settings(), f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
    assert found["hub"].outcome is Outcome.OK, found
    assert found["hub budget"] == Check("hub budget", Outcome.OK, "the Hub sets no request limit")


def test_a_dead_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        found = by_name(check_hub(Settings(), endpoint))
    assert found["hub"].outcome is Outcome.ERROR and endpoint in found["hub"].message and found["hub"].advice
    assert {found[name].outcome for name in HUB_NAMES[1:]} == {Outcome.SKIPPED}


@pytest.mark.parametrize("fault", [Fault("slow", seconds=60, times=None), Fault("500", times=None), Fault("drop")])
def test_a_hub_that_hangs_or_fails_is_asked_once(hub: HubServer, fault: Fault) -> None:
    hub.faults.add(fault)
    found = by_name(check_hub(Settings(request_timeout_s=0.5), hub.endpoint))
    assert found["hub"].outcome is Outcome.ERROR
    assert len(hub.request_log) <= 1


def test_a_whoami_that_fails_is_not_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_readread")
    hub.faults.add(Fault("429", match="whoami"))
    limited = by_name(check_hub(Settings(), hub.endpoint))
    assert (limited["hub"].outcome, limited["token"].outcome) == (Outcome.OK, Outcome.WARNING)
    hub.faults.add(Fault("500", match="whoami"))
    assert by_name(check_hub(Settings(), hub.endpoint))["token"].outcome is Outcome.WARNING


def _fine_grained(*scoped: object, everywhere: object = ()) -> dict[str, object]:
    access = {"role": "fineGrained", "fineGrained": {"global": list(everywhere), "scoped": list(scoped)}}
    return {"name": "ann", "auth": {"accessToken": access}}


def test_permissions_of_fine_grained_tokens() -> None:
    reads = _fine_grained({"entity": {"name": "ann"}, "permissions": ["repo.content.read", "repo.access.read"]})
    assert token_scope(reads) == TokenScope("ann", "fineGrained", ())
    writes = _fine_grained({"permissions": ["repo.content.read", "repo.write"]}, everywhere=["discussion.write"])
    assert token_scope(writes).writes == ("discussion.write", "repo.write")


@pytest.mark.parametrize(
    "answer",
    [None, [], "x", {}, {"name": 3, "auth": []}, {"auth": {"accessToken": {"role": ["write"]}}},
     {"auth": {"accessToken": {"role": "admin", "fineGrained": {"global": 1, "scoped": [1, {"permissions": {}}]}}}}],
)  # fmt: skip
def test_answers_of_another_shape_are_unknown(answer: object) -> None:
    assert token_scope(answer) == TokenScope("somebody", "unknown", ())
