"""Tokens, the site's own refusals (error table of the real Hub), quotas for everything, and the timed log."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from scanner.hub.http import httpx as client_http
from scanner.hub.server import Fault, HubServer, running_hub
from scanner.hub.server.limits import RateLimiter

NO_LOGIN = "Invalid username or password."
BAD_TOKEN = "Invalid credentials in Authorization header"


@pytest.fixture
def strict(registry: Path) -> Iterator[HubServer]:
    with running_hub(registry, strict_errors=True, tokens={"hf_read": "read", "hf_write": "write"}) as server:
        yield server


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("name", ["ann/none", "ann/secret", "none"])
@pytest.mark.parametrize(
    "path",
    [
        "/api/models/{}", "/api/models/{}/revision/main", "/api/models/{}/tree/main", "/api/models/{}/commits/main",
        "/api/models/{}/refs", "/api/models/{}/scan", "/{}/resolve/main/config.json",
        "/api/resolve-cache/models/{}/main/config.json",
    ],
)  # fmt: skip
def test_strict_missing_and_private(web: httpx2.Client, strict: HubServer, write_adapter, name: str, path: str) -> None:
    write_adapter("ann/secret", private=True)
    anonymous = web.get(strict.endpoint + path.format(name))
    assert (anonymous.status_code, anonymous.headers["x-error-message"]) == (401, NO_LOGIN)
    assert "x-error-code" not in anonymous.headers
    text = anonymous.json()["error"] if path.startswith("/api/models") else anonymous.text
    assert text == NO_LOGIN
    if name != "ann/secret":
        known = web.get(strict.endpoint + path.format(name), headers=bearer("hf_read"))
        assert (known.status_code, known.headers["x-error-code"]) == (404, "RepoNotFound")


def test_the_client_does_not_recognise_the_bare_401_over_http(strict: HubServer) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(endpoint=strict.endpoint, token=False).model_info("ann/none")
    assert type(caught.value) is HfHubHTTPError
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=strict.endpoint, token="hf_read").model_info("ann/none")


def test_strict_answers_for_what_is_there_are_the_usual_ones(
    web: httpx2.Client, strict: HubServer, write_adapter
) -> None:
    write_adapter("ann/one")
    write_adapter("ann/gated", gated="auto")
    for token, status in ((None, 401), ("hf_read", 403)):
        answer = web.get(f"{strict.endpoint}/ann/gated/resolve/main/adapter_config.json", headers=bearer(token))
        assert (answer.status_code, answer.headers["x-error-code"]) == (status, "GatedRepo")
    with pytest.raises(GatedRepoError):
        HfApi(endpoint=strict.endpoint, token=False).list_repo_commits("ann/gated")
    missing = web.get(f"{strict.endpoint}/ann/one/resolve/main/none")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")


@pytest.mark.parametrize(
    "path",
    ["/api/models", "/api/whoami-v2", "/api/models/ann/one", "/api/models/ann/none", "/api/nothing",
     "/ann/one/resolve/main/adapter_config.json"],
)  # fmt: skip
def test_a_token_that_is_nobodys_is_refused_everywhere(
    web: httpx2.Client, strict: HubServer, write_adapter, path: str
) -> None:
    write_adapter("ann/one")
    answer = web.get(strict.endpoint + path, headers=bearer("hf_bad"))
    assert (answer.status_code, answer.headers["x-error-message"]) == (401, BAD_TOKEN)
    assert "x-error-code" not in answer.headers
    assert "ratelimit" in answer.headers
    assert BAD_TOKEN in answer.text
    with pytest.raises(HfHubHTTPError, match=BAD_TOKEN):
        HfApi(endpoint=strict.endpoint, token="hf_bad").model_info("ann/one")


def test_whoami_tells_the_role_of_a_token(web: httpx2.Client, strict: HubServer) -> None:
    for token, role in (("hf_read", "read"), ("hf_write", "write")):
        me = HfApi(endpoint=strict.endpoint, token=token).whoami()
        assert (me["type"], me["auth"]["type"], me["auth"]["accessToken"]["role"]) == ("user", "access_token", role)
    anonymous = web.get(f"{strict.endpoint}/api/whoami-v2")
    assert (anonymous.status_code, anonymous.json()) == (401, {"error": NO_LOGIN})


def test_routes_for_single_names(web: httpx2.Client, hub: HubServer, client: HfApi, write_adapter) -> None:
    write_adapter("org/new", renamed_from="legacy")
    base = f"{hub.endpoint}/api/models/legacy"
    for end in ("", "/refs", "/scan", "/tree/main", "/commits/main", "/revision/main"):
        answer = web.get(base + end)
        assert (answer.status_code, answer.headers["location"]) == (307, f"/api/models/org/new{end}")
    moved = web.post(f"{base}/paths-info/main", data={"paths": "adapter_config.json"})
    assert (moved.status_code, moved.headers["location"]) == (307, "/api/models/org/new/paths-info/main")
    assert client.list_repo_refs("legacy").branches[0].name == "main"
    write_adapter("legacy/refs")
    assert client.model_info("legacy/refs").id == "legacy/refs"
    assert web.get(f"{hub.endpoint}/api/agent-harnesses").status_code == 404


def test_one_quota_for_everything(web: httpx2.Client, registry: Path, write_adapter) -> None:
    write_adapter("ann/one")
    with running_hub(registry, quotas={"all": 4}, window_s=300) as hub:
        paths = ["/api/models", "/ann/one/resolve/main/adapter_config.json", "/somewhere", "/api/models/ann/one"]
        answers = [web.get(hub.endpoint + path) for path in [*paths, "/api/models", "/nowhere"]]
        assert [answer.status_code for answer in answers] == [200, 307, 404, 200, 429, 429]
        left = [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers]
        assert left == ['"all";r=3', '"all";r=2', '"all";r=1', '"all";r=0', '"all";r=0', '"all";r=0']
        assert answers[0].headers["ratelimit-policy"] == '"fixed window";"all";q=4;w=300'


def test_all_covers_every_bucket() -> None:
    limiter = RateLimiter({"all": 2}, 10, clock=lambda: 0.0)
    states = [limiter.count(bucket) for bucket in ("api", "resolvers", "pages")]
    assert [state.is_allowed for state in states] == [True, True, False]
    assert {state.bucket for state in states} == {"all"}


def test_the_timed_log_has_the_same_requests_with_moment_and_origin(
    web: httpx2.Client, hub: HubServer, client: HfApi, write_adapter, tmp_path: Path
) -> None:
    write_adapter("ann/one")
    hub.faults.add(Fault("drop", match="/api/models/ann"))
    before = time.monotonic()
    with pytest.raises(client_http.RemoteProtocolError):
        client.model_info("ann/one")
    client.hf_hub_download("ann/one", "adapter_model.safetensors", cache_dir=tmp_path)
    assert [tuple(record[2:]) for record in hub.timed_log] == [tuple(record) for record in hub.request_log]
    assert hub.timed_log[0].status == 0
    assert {record.host for record in hub.timed_log} == {"api", "cdn"}
    moments = [record.at_s for record in hub.timed_log]
    assert moments == sorted(moments) and before <= moments[0] <= moments[-1] <= time.monotonic()


def test_serve_takes_quota_script_and_strictness(
    web: httpx2.Client, registry: Path, write_repo, tmp_path: Path
) -> None:
    write_repo("o/a", {"a.txt": "1"})
    faults = tmp_path / "faults.json"
    faults.write_text('{"script": [{"on": "refs$", "do": {"action": "delete", "repo": "o/a"}}]}')
    options = ["--port", "0", "--quota", "3", "--window-s", "600", "--strict-errors", "--faults", str(faults)]
    command = [sys.executable, "-m", "flows.cli", "hub", "serve", str(registry), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip().partition("=")[2]
        url = f"{endpoint}/api/models/o/a"
        assert [web.get(link).status_code for link in (url, f"{url}/refs", url, url)] == [200, 401, 401, 429]
        assert not (registry / "o" / "a").exists()
    finally:
        process.terminate()
        process.communicate(timeout=10)
