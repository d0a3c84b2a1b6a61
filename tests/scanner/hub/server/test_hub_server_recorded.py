"""The local hub's answers beside recorded ones of the real Hub, field by field, where the recordings are at hand.

What cannot be equal is left out on purpose and said in the test: hosts, counts of a quota, texts that quote a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from scanner.hub.server import HubServer, actions, running_hub
from scanner.hub.server.shapes import EXPAND_FIELDS


@pytest.fixture
def recorded(data_dir: Path):
    def load(name: str) -> dict[str, Any]:
        path = data_dir / "hub" / "recorded" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    return load


@pytest.fixture
def strict(registry: Path) -> Iterator[HubServer]:
    with running_hub(registry, strict_errors=True, quotas={"api": 500, "resolvers": 3000}) as server:
        yield server


def shape(value: Any) -> Any:
    """The types of a JSON value; of a list, those of its items."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(item), sort_keys=True) for item in value})
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def check_headers(answer: httpx2.Response, expected: dict[str, str], *, but: tuple[str, ...] = ()) -> None:
    """Every recorded header is there with the recorded value; of the quota only what the window decides may differ."""
    for name, value in expected.items():
        if name in but:
            continue
        found = answer.headers.get(name)
        if name == "ratelimit":
            assert re.sub(r"[rt]=\d+", "", found) == re.sub(r"[rt]=\d+", "", value)
        elif name == "content-type":
            # This server leaves out the charset of JSON, which is UTF-8 by definition.
            assert found.partition(";")[0] == value.partition(";")[0]
        else:
            assert found == value, name


def test_model_not_found(web: httpx2.Client, strict: HubServer, recorded) -> None:
    real = recorded("model-not-found")
    answer = web.get(strict.endpoint + real["request"])
    assert (answer.status_code, answer.json()) == (real["status"], real["body"])
    check_headers(answer, real["headers"])
    assert "x-error-code" not in answer.headers


def test_renamed(web: httpx2.Client, strict: HubServer, write_repo, recorded) -> None:
    real = recorded("redirect-renamed")
    old = real["request"].removeprefix("/api/models/")
    write_repo(real["headers"]["location"].removeprefix("/api/models/"), {"a.txt": "a"}, renamed_from=old)
    answer = web.get(strict.endpoint + real["request"])
    assert (answer.status_code, answer.content) == (real["status"], b"")
    check_headers(answer, real["headers"])


def test_bad_revision_of_commits(web: httpx2.Client, strict: HubServer, write_repo, recorded) -> None:
    real = recorded("commits-bad-revision")
    write_repo("openai-community/gpt2", {"a.txt": "a"})
    answer = web.get(strict.endpoint + real["request"])
    assert (answer.status_code, answer.json()) == (real["status"], real["body"])
    check_headers(answer, real["headers"])


def test_commits(web: httpx2.Client, strict: HubServer, registry: Path, write_repo, recorded) -> None:
    real = recorded("commits-gpt2")
    write_repo("openai-community/gpt2", {"a.txt": "0"})
    total = int(real["headers"]["x-total-count"])
    for number in range(total):
        web.get(f"{strict.endpoint}/api/models/openai-community/gpt2")  # a commit is one that was looked at
        actions.commit(registry, "openai-community/gpt2", {"a.txt": str(number + 1)})
    answer = web.get(strict.endpoint + real["request"])
    answer_headers = {name: value for name, value in real["headers"].items() if name != "x-total-count"}
    assert int(answer.headers["x-total-count"]) == total + 1  # the first one, by hand, counts too
    check_headers(answer, answer_headers, but=("link",))
    # The address is this hub's; the order of its parameters has no meaning.
    [there], [here] = (re.findall(r"<https?://[^/]+(/[^?]*)\?([^>]*)>; rel=\"next\"", text)
                       for text in (real["headers"]["link"], answer.headers["link"]))  # fmt: skip
    assert (there[0], sorted(there[1].split("&"))) == (here[0], sorted(here[1].split("&")))
    assert answer.status_code == real["status"]
    assert shape(answer.json()) == shape(real["body"])
    [commit] = answer.json()
    assert re.fullmatch("[0-9a-f]{40}", commit["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", commit["date"])


def test_commits_of_a_gated_repo(web: httpx2.Client, strict: HubServer, write_repo, recorded) -> None:
    real = recorded("commits-gated")
    write_repo("meta-llama/Llama-3.1-8B", {"a.txt": "a"}, gated="manual")
    answer = web.get(strict.endpoint + real["request"])
    assert (answer.status_code, answer.json()) == (real["status"], real["body"])
    check_headers(answer, real["headers"])


def test_head_of_a_gated_file(web: httpx2.Client, strict: HubServer, write_repo, recorded) -> None:
    real = recorded("resolve-gated-head")
    method, _, path = real["request"].partition(" ")
    write_repo("meta-llama/Llama-3.1-8B-Instruct", {"config.json": "{}"}, gated="manual")
    answer = web.request(method, strict.endpoint + path)
    assert answer.status_code == real["status"]
    # The site's software names itself; this one does not pretend to be it.
    check_headers(answer, real["headers"], but=("x-powered-by",))


def test_missing_entry(web: httpx2.Client, strict: HubServer, write_repo, recorded) -> None:
    real = recorded("resolve-missing-entry")
    write_repo("ann/one", {"a.txt": "a"})
    answer = web.get(f"{strict.endpoint}/ann/one/resolve/main/none.json")
    assert answer.status_code == real["status"]
    # The ETag there is one of the error's own text, which nobody reads.
    check_headers(answer, real["headers"], but=("etag", "x-repo-commit"))
    assert re.fullmatch("[0-9a-f]{40}", answer.headers["x-repo-commit"])


def test_small_file_redirect(web: httpx2.Client, strict: HubServer, write_repo, recorded) -> None:
    real = recorded("resolve-small-307")
    write_repo("ns/repo", {"model.safetensors.index.json": "{}"})
    answer = web.get(f"{strict.endpoint}/ns/repo/resolve/main/model.safetensors.index.json")
    assert answer.status_code == real["status"]
    # The recording has a text body of 320 bytes ("Temporary Redirect. Redirecting to ..."); here it is empty.
    check_headers(answer, real["headers"], but=("location", "content-type", "content-length"))
    sha, etag = answer.headers["x-repo-commit"], answer.headers["x-linked-etag"].strip('"')
    expected = real["headers"]["location"].replace("...", "model.safetensors.index.json")
    for placeholder, value in {"<ns>": "ns", "<repo>": "repo", "<sha>": sha, "<blob-sha1>": etag}.items():
        expected = expected.replace(placeholder, value)
    assert answer.headers["location"] == expected


def test_expanded_model(web: httpx2.Client, strict: HubServer, write_repo, recorded) -> None:
    real = recorded("model-expand-derived")
    body = real["body"]
    base = body["baseModels"]["models"][0]
    write_repo(base["id"], {"config.json": "{}"}, _id=base["_id"])
    card = "---\nlibrary_name: transformers\nbase_model: {}\nbase_model_relation: {}\nmodel_type: llama\n" + (
        "pipeline_tag: text-generation\nlicense: llama2\nlanguage: en\ntags: [facebook, meta, pytorch, llama-2]\n---\n"
    )
    files = {"README.md": card.format(base["id"], body["baseModels"]["relation"]), "model.gguf": "GGUF"}
    write_repo(
        body["id"], files, _id=body["_id"], created_at=body["createdAt"], last_modified=body["lastModified"],
        likes=body["likes"], downloads=body["downloads"], downloads_all_time=body["downloadsAllTime"],
        tags=["llama", "arxiv:2307.09288"],
    )  # fmt: skip
    asked = [name for name in body if name in EXPAND_FIELDS]
    answer = web.get(f"{strict.endpoint}/api/models/{body['id']}", params={"expand[]": asked})
    assert answer.status_code == real["status"]
    check_headers(answer, real["headers"])
    found = answer.json()
    assert shape(found) == shape(body)
    # The commit id is one of this hub's; the tags are the same ones in another order.
    assert re.fullmatch("[0-9a-f]{40}", found["sha"])
    assert sorted(found["tags"]) == sorted(body["tags"])
    for name in ("sha", "tags"):
        del found[name], body[name]
    assert found == body
