"""Refusals and spoiled answers beyond the plain ones: codes, waiting hints, slow and stalled bodies, wrong headers."""

from __future__ import annotations

import json
import re
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from scanner.errors import UsageError
from scanner.hub.server import Fault, HubServer
from scanner.hub.server.faults import parse_faults

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (401, "GatedRepo", "Access to model ann/one is restricted.", GatedRepoError),
        (403, "GatedRepo", "Access to model ann/one is restricted.", GatedRepoError),
        (404, "RepoNotFound", "Repository not found", RepositoryNotFoundError),
        (404, "EntryNotFound", "Entry not found", RemoteEntryNotFoundError),
        (404, "RevisionNotFound", "Invalid rev id: x", RevisionNotFoundError),
        (403, None, "Access to this resource is disabled.", DisabledRepoError),
        (401, None, "Invalid username or password.", HfHubHTTPError),
        (401, None, "Invalid credentials in Authorization header", HfHubHTTPError),
        (404, None, "Not Found", HfHubHTTPError),
    ],
)
def test_denied_is_what_the_client_makes_of_it(
    hub: HubServer, client: HfApi, write_adapter, status: int, code: str | None, message: str, expected: type[Exception]
) -> None:
    write_adapter("ann/one")
    hub.faults.add(Fault("denied", match="ann/one", status=status, code=code, message=message))
    with pytest.raises(HfHubHTTPError) as caught:
        client.model_info("ann/one")
    assert type(caught.value) is expected
    headers = caught.value.response.headers
    assert caught.value.response.status_code == status
    assert (headers.get("x-error-code"), headers["x-error-message"]) == (code, message)
    assert client.model_info("ann/one").id == "ann/one"


def test_denied_at_a_file_address_is_plain_text(web: httpx2.Client, hub: HubServer) -> None:
    hub.faults.add(Fault("denied", match="/resolve/", message="no\r\nX-Evil: 1"))
    answer = web.get(f"{hub.endpoint}/a/b/resolve/main/c")
    assert (answer.status_code, answer.headers["content-type"]) == (401, "text/plain; charset=utf-8")
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    ("hint", "seconds", "expected"),
    [
        ("ratelimit", 7, {"ratelimit": '"api";r=0;t=7'}),
        ("ratelimit", 10**9, {"ratelimit": '"api";r=0;t=1000000000'}),
        ("seconds", 9, {"retry-after": "9"}),
        ("both", 9, {"retry-after": "9", "ratelimit": '"api";r=0;t=9'}),
        ("none", 9, {}),
    ],
)
def test_429_in_every_form(
    web: httpx2.Client, hub: HubServer, hint: str, seconds: int, expected: dict[str, str]
) -> None:
    hub.faults.add(Fault("429", hint=hint, seconds=seconds))  # type: ignore[arg-type]
    answer = web.get(f"{hub.endpoint}/api/models")
    assert answer.status_code == 429
    told = {name: answer.headers[name] for name in ("ratelimit", "retry-after") if name in answer.headers}
    assert told == expected


def test_429_with_a_date_or_with_garbage(web: httpx2.Client, hub: HubServer) -> None:
    hub.faults.add(Fault("429", hint="date", seconds=3600))
    before = time.time()
    answer = web.get(f"{hub.endpoint}/api/models")
    until = parsedate_to_datetime(answer.headers["retry-after"]).timestamp()
    assert 3598 <= until - before <= 3700
    assert "ratelimit" not in answer.headers
    hub.faults.add(Fault("429", hint="garbage"))
    answer = web.get(f"{hub.endpoint}/api/models")
    assert not answer.headers["retry-after"].isdigit()
    assert re.fullmatch(r'"api";r=\d+;t=\d+', answer.headers["ratelimit"]) is None


def test_slow_body_arrives_whole_in_pieces(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    content = (write_adapter("ann/one") / WEIGHTS).read_bytes()
    location = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}").headers["location"]
    hub.faults.add(Fault("slow_body", host="cdn", bytes_per_s=20_000))
    started, pieces = time.monotonic(), []
    with web.stream("GET", location) as answer:
        pieces = list(answer.iter_raw())
    assert b"".join(pieces) == content
    assert len(pieces) > 1
    assert time.monotonic() - started >= 0.15  # 4,000 bytes at 20,000 a second


@pytest.mark.parametrize("kind", ["slow_body", "stalled_body"])
def test_a_body_that_nobody_waits_for_ends_at_once(
    web: httpx2.Client, hub: HubServer, write_adapter, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    write_adapter("ann/one")
    location = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}").headers["location"]
    hub.faults.add(Fault(kind, host="cdn", bytes_per_s=10, keep_bytes=5, seconds=3600))  # type: ignore[arg-type]
    happened = threading.Event()
    hub.script.on(WEIGHTS, happened.set, host="cdn", after=True)
    with pytest.raises(httpx2.ReadTimeout), web.stream("GET", location, timeout=0.05) as answer:
        for _ in answer.iter_raw():
            pass
    assert happened.wait(20)  # the hub is done with it: an hour early
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_stalled_body_is_bounded(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    content = (write_adapter("ann/one") / WEIGHTS).read_bytes()
    location = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}").headers["location"]
    hub.faults.add(Fault("stalled_body", host="cdn", keep_bytes=5, seconds=0.2))
    received = b""
    with pytest.raises(httpx2.RemoteProtocolError), web.stream("GET", location) as answer:
        assert answer.headers["content-length"] == str(len(content))
        for chunk in answer.iter_raw():
            received += chunk
    assert received == content[:5]


def test_chunked_announces_no_length(
    web: httpx2.Client, hub: HubServer, client: HfApi, write_adapter, tmp_path
) -> None:
    content = (write_adapter("ann/one") / WEIGHTS).read_bytes()
    location = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}").headers["location"]
    hub.faults.add(Fault("chunked", host="cdn", times=2))
    answer = web.get(location)
    assert "content-length" not in answer.headers
    assert (answer.headers["transfer-encoding"], answer.content) == ("chunked", content)
    assert Path(client.hf_hub_download("ann/one", WEIGHTS, cache_dir=tmp_path)).read_bytes() == content
    assert hub.faults.pending() == ()


def test_wrong_and_missing_linked_headers(web: httpx2.Client, hub: HubServer, client: HfApi, write_adapter) -> None:
    content = (write_adapter("ann/one") / WEIGHTS).read_bytes()
    url = f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}"
    true = web.head(url).headers
    hub.faults.add(Fault("wrong_linked_etag", match=WEIGHTS))
    wrong = web.head(url).headers
    assert re.fullmatch('"[0-9a-f]{64}"', wrong["x-linked-etag"])
    assert wrong["x-linked-etag"] != true["x-linked-etag"]
    hub.faults.add(Fault("wrong_linked_size", match=WEIGHTS, size_delta=7))
    assert client.get_hf_file_metadata(url=url).size == len(content) + 7
    hub.faults.add(Fault("no_linked_etag", match=WEIGHTS))
    assert "x-linked-etag" not in web.head(url).headers
    assert web.head(url).headers["x-linked-etag"] == true["x-linked-etag"]
    # Where small files are served without a redirect, the ETag stands for it.
    small = f"{hub.endpoint}/api/resolve-cache/models/ann/one/{true['x-repo-commit']}/adapter_config.json"
    right = web.get(small).headers["etag"]
    hub.faults.add(Fault("wrong_linked_etag", match="resolve-cache"))
    assert web.get(small).headers["etag"] != right


def test_faults_of_one_request_add_up(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    content = (write_adapter("ann/one") / WEIGHTS).read_bytes()
    location = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}").headers["location"]
    hub.faults.add(Fault("ignore_range", host="cdn"))
    hub.faults.add(Fault("slow", host="cdn", seconds=0.01))
    hub.faults.add(Fault("wrong_sha256", host="cdn"))
    answer = web.get(location, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, len(answer.content)) == (200, len(content))
    assert answer.content != content
    assert hub.faults.pending() == ()


def test_a_burst_of_5xx_and_then_an_end(web: httpx2.Client, hub: HubServer) -> None:
    hub.faults.add(Fault("500", status=503, times=3))
    hub.faults.add(Fault("500", status=502, times=2))
    assert [web.get(f"{hub.endpoint}/api/models").status_code for _ in range(6)] == [503, 503, 503, 502, 502, 200]


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "denied", "status": 500.5}, {"kind": "denied", "status": 418}, {"kind": "denied", "code": 5},
        {"kind": "denied", "message": None}, {"kind": "429", "hint": "loud"}, {"kind": "slow_body", "bytes_per_s": -1},
        {"kind": "500", "status": 401},
    ],
)  # fmt: skip
def test_malformed_faults_are_refused(raw: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        parse_faults(json.loads(json.dumps(raw)))
