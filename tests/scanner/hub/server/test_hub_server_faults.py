"""Every fault, and the quotas, as the real client meets them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from scanner.errors import UsageError
from scanner.hub.http import httpx as client_http
from scanner.hub.server import Fault, FaultBoard, HubServer, load_faults, running_hub
from scanner.hub.server.limits import RateLimiter, bucket_of

WEIGHTS = "adapter_model.safetensors"
waits_on_listings = pytest.mark.skipif(
    int(huggingface_hub.__version__.split(".")[0]) < 2, reason="huggingface_hub 1 does not retry the first page"
)


def statuses(hub: HubServer, path_end: str) -> list[int]:
    return [record.status for record in hub.request_log if record.path.endswith(path_end)]


def test_429_tells_when_to_come_back(hub: HubServer, client: HfApi, write_adapter) -> None:
    write_adapter("ann/one")
    hub.faults.add(Fault("429", match="/api/models", seconds=7))
    with pytest.raises(HfHubHTTPError) as caught:  # model_info does not retry
        client.model_info("ann/one")
    headers = caught.value.response.headers
    assert caught.value.response.status_code == 429
    assert headers["ratelimit"] == '"api";r=0;t=7'
    assert headers["ratelimit-policy"].startswith('"fixed window";"api";q=')
    assert "retry-after" not in headers
    assert client.model_info("ann/one").id == "ann/one"


@waits_on_listings
def test_the_client_waits_out_a_429_on_listings(hub: HubServer, client: HfApi, write_adapter) -> None:
    write_adapter("ann/one")
    hub.faults.add(Fault("429", match="^/api/models$", seconds=0))
    start = time.monotonic()
    assert [model.id for model in client.list_models()] == ["ann/one"]
    assert time.monotonic() - start >= 0.9
    assert statuses(hub, "/api/models") == [429, 200]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_5xx(hub: HubServer, client: HfApi, write_adapter, status: int) -> None:
    write_adapter("ann/one")
    hub.faults.add(Fault("500", status=status, method="get"))
    with pytest.raises(HfHubHTTPError) as caught:
        client.model_info("ann/one")
    assert caught.value.response.status_code == status
    assert caught.value.response.headers["ratelimit"].startswith('"api";r=')


def test_drop(hub: HubServer, client: HfApi, write_adapter, caplog: pytest.LogCaptureFixture) -> None:
    write_adapter("ann/one")
    hub.faults.add(Fault("drop"))
    with pytest.raises(client_http.RemoteProtocolError):
        client.model_info("ann/one")
    assert statuses(hub, "ann/one") == [0]
    assert client.model_info("ann/one").id == "ann/one"
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_slow(web: httpx2.Client, hub: HubServer, client: HfApi, write_adapter) -> None:
    write_adapter("ann/one")
    hub.faults.add(Fault("slow", seconds=0.4))
    with pytest.raises(httpx2.ReadTimeout):
        web.get(f"{hub.endpoint}/api/models/ann/one", timeout=0.1)
    hub.faults.add(Fault("slow", seconds=0.2))
    start = time.monotonic()
    assert client.model_info("ann/one").id == "ann/one"
    assert time.monotonic() - start >= 0.2


def test_truncate_breaks_off_and_the_client_resumes(
    tensor_file,
    web: httpx2.Client,
    hub: HubServer,
    client: HfApi,
    write_adapter,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The client writes in pieces of 10 MiB: one whole piece has to arrive for a resume to be possible.
    content = tensor_file(size=11 << 20)
    write_adapter("ann/one", files={WEIGHTS: content})
    location = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}").headers["location"]
    hub.faults.add(Fault("truncate", match=WEIGHTS, keep_bytes=100))
    received = b""
    with pytest.raises(httpx2.RemoteProtocolError), web.stream("GET", location) as answer:
        assert answer.headers["content-length"] == str(len(content))
        for chunk in answer.iter_raw():
            received += chunk
    assert received == content[:100]

    hub.faults.add(Fault("truncate", match=WEIGHTS, keep_bytes=(10 << 20) + 5, host="cdn"))
    path = client.hf_hub_download("ann/one", WEIGHTS, cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    assert hub.request_log[-1].status == 206
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_wrong_sha256_passes_the_client_unnoticed(hub: HubServer, client: HfApi, write_adapter, tmp_path: Path) -> None:
    content = (write_adapter("ann/one") / WEIGHTS).read_bytes()
    hub.faults.add(Fault("wrong_sha256", match=WEIGHTS))
    received = Path(client.hf_hub_download("ann/one", WEIGHTS, cache_dir=tmp_path)).read_bytes()
    assert len(received) == len(content)
    assert received[:-1] == content[:-1] and received[-1] != content[-1]
    assert hub.faults.pending() == ()


@pytest.mark.parametrize("delta", [-3, 5])
def test_wrong_size_is_noticed(hub: HubServer, client: HfApi, write_adapter, tmp_path: Path, delta: int) -> None:
    write_adapter("ann/one")
    hub.faults.add(Fault("wrong_size", match=WEIGHTS, times=None, size_delta=delta))
    with pytest.raises(OSError, match="Consistency check failed"):
        client.hf_hub_download("ann/one", WEIGHTS, cache_dir=tmp_path)


def test_ignore_range(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    content = (write_adapter("ann/one") / WEIGHTS).read_bytes()
    location = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}").headers["location"]
    hub.faults.add(Fault("ignore_range", host="cdn"))
    answer = web.get(location, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (200, content)
    assert web.get(location, headers={"Range": "bytes=0-9"}).status_code == 206


def test_a_fault_hits_so_many_times_and_only_its_paths(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    write_adapter("ann/one")
    write_adapter("bob/two")
    hub.faults.add(Fault("500", match="^/api/models/ann/", times=2))
    found = [web.get(f"{hub.endpoint}/api/models/{repo}").status_code for repo in ("bob/two", *["ann/one"] * 3)]
    assert found == [200, 500, 500, 200]
    hub.faults.add(Fault("500", times=None))
    assert [web.get(f"{hub.endpoint}/api/models").status_code for _ in range(3)] == [500] * 3
    hub.faults.clear()
    assert web.get(f"{hub.endpoint}/api/models").status_code == 200


def test_faults_over_http(web: httpx2.Client, hub: HubServer) -> None:
    url = f"{hub.endpoint}/_hub/faults"
    added = web.post(url, json=[{"kind": 503, "match": "x"}])
    assert added.status_code == 400 and "'503' is not one of" in added.json()["error"]
    assert web.post(url, content=b"{").status_code == 400
    assert web.post(url, json={"kind": 500, "status": 503, "times": 2}).status_code == 200
    assert web.get(f"{hub.endpoint}/api/models").status_code == 503
    assert web.get(url).json()[0]["times"] == 1
    assert web.delete(url).json() == []
    assert web.get(f"{hub.endpoint}/api/models").status_code == 200


def test_faults_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps([{"kind": "drop", "times": None}, {"kind": 429, "seconds": 3}]))
    assert load_faults(path) == [Fault("drop", times=None), Fault("429", seconds=3)]
    for text in ("{", "[1]", '{"kind": "x"}', '{"kind": "drop", "colour": 1}', '{"kind": "drop", "match": "("}',
                 '{"kind": "drop", "times": -1}', '{"kind": "500", "status": 418}', '{"kind": "drop", "host": "x"}',
                 '{"kind": "drop", "match": 5}', '{"kind": "slow", "seconds": "1"}'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UsageError):
            load_faults(path)
    with pytest.raises(UsageError, match="does not exist"):
        load_faults(tmp_path / "none.json")


def test_a_fault_that_never_happens_is_not_kept() -> None:
    assert FaultBoard([Fault("drop", times=0)]).pending() == ()


def test_every_answer_tells_the_quota(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    write_adapter("ann/one", renamed_from="ann/old")
    for path, bucket in {
        "/api/models": "api",
        "/api/models/ann/one": "api",
        "/api/models/ann/old": "api",
        "/api/models/ann/none": "api",
        "/api/nothing": "api",
        "/ann/one/resolve/main/adapter_config.json": "resolvers",
        f"/ann/one/resolve/main/{WEIGHTS}": "resolvers",
        "/ann/one/resolve/main/none": "resolvers",
        "/somewhere": "pages",
    }.items():
        headers = web.get(hub.endpoint + path).headers
        assert re.fullmatch(rf'"{bucket}";r=\d+;t=\d+', headers["ratelimit"]), path
        assert headers["ratelimit-policy"] == f'"fixed window";"{bucket}";q=100000;w=300'


@waits_on_listings
def test_a_used_up_quota_is_a_429_until_the_window_ends(
    web: httpx2.Client, registry: Path, write_adapter, tmp_path: Path
) -> None:
    write_adapter("ann/one")
    with running_hub(registry, quotas={"api": 2}, window_s=2) as hub:
        client = HfApi(endpoint=hub.endpoint, token=False)
        first = web.get(f"{hub.endpoint}/api/models")
        assert first.headers["ratelimit"].startswith('"api";r=1;t=')
        client.model_info("ann/one")
        refused = web.get(f"{hub.endpoint}/api/models/ann/one")
        assert refused.status_code == 429
        assert refused.headers["ratelimit"].startswith('"api";r=0;t=')
        # Another bucket has its own quota, and a listing waits for the next window by itself.
        client.hf_hub_download("ann/one", WEIGHTS, cache_dir=tmp_path)
        assert [model.id for model in client.list_models()] == ["ann/one"]


def test_windows_are_fixed() -> None:
    now = [100.0]
    limiter = RateLimiter({"api": 2}, 300, clock=lambda: now[0])
    assert [limiter.count("api").remaining for _ in range(2)] == [1, 0]
    now[0] = 250.5
    refused = limiter.count("api")
    assert (refused.is_allowed, refused.remaining, refused.resets_in_s) == (False, 0, 150)
    assert limiter.count("resolvers").is_allowed
    now[0] = 400.0
    assert limiter.count("api").is_allowed


@pytest.mark.parametrize(
    ("path", "bucket"),
    [("/api/models", "api"), ("/api/resolve-cache/models/a/b/c/d", "resolvers"), ("/a/b/resolve/main/c", "resolvers"),
     ("/a%2Fb%2Fresolve%2Fmain%2Fc", "pages"), ("/api/models/resolve/x", "api")],
)  # fmt: skip
def test_buckets(path: str, bucket: str) -> None:
    assert bucket_of(path) == bucket
