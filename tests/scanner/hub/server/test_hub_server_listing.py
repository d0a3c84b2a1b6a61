"""GET /api/models through the real client."""

from __future__ import annotations

import base64
import json
import shutil
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import given
from hypothesis import strategies as st

from scanner.hub.server import HubServer, running_hub
from scanner.hub.server.paging import Cursor, decode_cursor


def ids(models: Any) -> list[str]:
    return [model.id for model in models]


def day(number: int) -> str:
    return f"2026-03-{number:02d}T00:00:00.000Z"


def test_filters_are_anded_and_sorted(client: HfApi, write_adapter, write_repo) -> None:
    write_repo("bases/tiny-llama", {"config.json": {"architectures": ["LlamaForCausalLM"]}})
    write_adapter("ann/one", created_at=day(1), downloads=5)
    write_adapter("bob/two", created_at=day(2), downloads=1, tags=["special"])
    write_adapter("bob/three", base="bases/other", created_at=day(3))
    wanted = ["peft", "base_model:adapter:bases/tiny-llama"]

    assert ids(client.list_models(filter=wanted, sort="created_at")) == ["bob/two", "ann/one"]
    assert ids(client.list_models(filter=wanted, sort="downloads")) == ["ann/one", "bob/two"]
    assert ids(client.list_models(filter=[*wanted, "special"])) == ["bob/two"]
    assert ids(client.list_models(author="bob", sort="created_at")) == ["bob/three", "bob/two"]
    assert ids(client.list_models(search="bob thr")) == ["bob/three"]
    assert ids(client.list_models(filter="no-such-tag")) == []


@pytest.mark.parametrize("sort", ["created_at", "last_modified", "downloads", "likes", "trending_score"])
def test_paging_returns_each_repo_once(
    web: httpx2.Client, client: HfApi, hub: HubServer, write_repo, sort: str
) -> None:
    # Equal sort keys on purpose: the identity has to break the tie.
    for number in range(11):
        write_repo(f"o/r{number}", created_at=day(1 + number // 4), last_modified=day(9), likes=number % 3)
    wire = {"created_at": "createdAt", "last_modified": "lastModified", "trending_score": "trendingScore"}
    found = []
    url: str | None = f"{hub.endpoint}/api/models?sort={wire.get(sort, sort)}&limit=3&expand=likes&expand=sha"
    while url is not None:
        answer = web.get(url)
        found += [item["id"] for item in answer.json()]
        assert all(set(item) == {"_id", "id", "likes", "sha"} for item in answer.json())
        url = answer.links.get("next", {}).get("url")
    assert sorted(found) == sorted(f"o/r{number}" for number in range(11))
    assert found == ids(client.list_models(sort=sort))  # type: ignore[arg-type]


def test_the_client_pages_by_itself(registry: Path, write_repo) -> None:
    for number in range(5):
        write_repo(f"o/r{number}", created_at=day(1 + number))
    with running_hub(registry, max_page=2) as hub:
        client = HfApi(endpoint=hub.endpoint, token=False)
        assert ids(client.list_models(sort="created_at")) == [f"o/r{n}" for n in (4, 3, 2, 1, 0)]
        assert len(hub.request_log) == 3
        assert ids(client.list_models(sort="created_at", limit=3)) == ["o/r4", "o/r3", "o/r2"]


def test_link_is_absolute_on_the_address_that_was_asked(web: httpx2.Client, hub: HubServer, write_repo) -> None:
    write_repo("o/a")
    write_repo("o/b")
    endpoint = hub.endpoint.replace("127.0.0.1", "localhost")
    answer = web.get(f"{endpoint}/api/models?limit=1&filter=region:us&filter=region:us")
    link = answer.headers["link"]
    assert link.startswith(f"<{endpoint}/api/models?limit=1&filter=region%3Aus&filter=region%3Aus&cursor=")
    assert link.endswith('>; rel="next"')


def test_a_repo_that_arrives_while_paging_shifts_nothing(
    web: httpx2.Client, hub: HubServer, write_repo, monkeypatch
) -> None:
    monkeypatch.setattr("scanner.hub.server.listing._LATER_PAGE_MAX_AGE_S", 0.0)
    for number in range(1, 7):
        write_repo(f"o/r{number}", created_at=day(number))
    first = web.get(f"{hub.endpoint}/api/models?sort=createdAt&limit=3")
    write_repo("o/new", created_at=day(20))
    second = web.get(first.links["next"]["url"])
    both = [item["id"] for item in first.json() + second.json()]
    assert both == [f"o/r{n}" for n in (6, 5, 4, 3, 2, 1)]


def test_item_shapes(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    write_adapter("o/a", created_at=day(1), downloads=7, likes=2)
    plain = web.get(f"{hub.endpoint}/api/models").json()[0]
    assert set(plain) == {
        "_id", "id", "modelId", "likes", "trendingScore", "private", "downloads", "tags", "pipeline_tag",
        "library_name", "createdAt",
    }  # fmt: skip
    full = web.get(f"{hub.endpoint}/api/models?full=true&config=true&cardData=true").json()[0]
    assert set(full) - set(plain) == {
        "author", "sha", "lastModified", "gated", "disabled", "siblings", "config",
    }  # fmt: skip
    assert full["siblings"] == [{"rfilename": "adapter_config.json"}, {"rfilename": "adapter_model.safetensors"}]
    bracketed = web.get(f"{hub.endpoint}/api/models", params={"expand[]": ["gated", "usedStorage"]}).json()
    assert set(bracketed[0]) == {"_id", "id", "gated", "usedStorage"}


def test_everything_for_grouping_in_one_call(client: HfApi, write_adapter, write_repo) -> None:
    base = write_repo("bases/tiny-llama", {"config.json": {"architectures": ["LlamaForCausalLM"]}})
    write_adapter("ann/one", created_at=day(1))
    expand = ["sha", "createdAt", "lastModified", "tags", "library_name", "baseModels", "config", "siblings",
              "gated", "private", "disabled", "cardData", "usedStorage"]  # fmt: skip
    [model] = client.list_models(filter="peft", expand=expand)  # type: ignore[arg-type]
    base_uid = client.model_info("bases/tiny-llama", expand=["sha"])._id  # type: ignore[attr-defined]
    assert base.is_dir()
    assert model.base_models == {"relation": "adapter", "models": [{"_id": base_uid, "id": "bases/tiny-llama"}]}
    assert model.config == {"peft": {"base_model_name_or_path": "bases/tiny-llama", "task_type": "CAUSAL_LM"}}
    assert model.sha is not None and len(model.sha) == 40


@pytest.mark.parametrize(
    "query", ["expand=nonsense", "sort=size", "limit=0", "limit=-1", "limit=x", "cursor=%%%", "cursor=e30="]
)
def test_a_bad_question_is_a_400_in_words(web: httpx2.Client, hub: HubServer, query: str) -> None:
    answer = web.get(f"{hub.endpoint}/api/models?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"] == answer.headers["x-error-message"]
    if query == "expand=nonsense":
        assert "baseModels" in answer.json()["error"]


def test_the_client_reports_an_unknown_expand(client: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="Valid values: author"):
        list(client.list_models(expand=["nonsense"]))  # type: ignore[list-item]


def test_a_cursor_belongs_to_its_order(web: httpx2.Client, hub: HubServer, write_repo) -> None:
    write_repo("o/a")
    write_repo("o/b")
    url = web.get(f"{hub.endpoint}/api/models?sort=likes&limit=1").links["next"]["url"]
    assert web.get(url.replace("sort=likes", "sort=downloads")).status_code == 400


@given(
    st.sampled_from(["likes", "createdAt"]), st.integers(-(2**60), 2**60) | st.text(max_size=50), st.text(max_size=24)
)
def test_cursors_survive_the_round_trip(sort: str, value: int | str, uid: str) -> None:
    cursor = Cursor(sort, value, uid)
    text = cursor.encode()
    assert decode_cursor(text, sort) == cursor
    assert base64.urlsafe_b64decode(text)


def test_broken_and_hostile_repos_do_not_break_the_listing(client: HfApi, write_repo, write_adapter) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
    )
    merges = "a: &a {k: 1}\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{','.join(['*' + chr(97 + n)] * 9)}]}}\n" for n in range(9)
    )
    cards = {
        "bomb": bomb,
        "merges": merges,
        "cycle": "a: &a [*a]",
        "deep": "[" * 60_000,
        "deep-blocks": "- " * 20_000,
        "date": "when: 2026-99-99",
        "tag": "a: !!timestamp x\nb: !!bool maybe",
        "python": "x: !!python/object/apply:os.system ['true']",
        "types": "tags: {a: 1}\nbase_model: [1, null, ok/name]\nlicense: 5\nn: .nan\nd: 2026-01-01",
        "numbers": f"n: {'9' * 5000}",
        "keywords": "self: 1\nignore_metadata_errors: true\ntags: 7",
        "index": "model-index: 5",
        "binary": "\x00\x01\ufffe",
    }
    for name, text in cards.items():
        write_repo(f"bad/{name}", {"README.md": f"---\n{text}\n---\n"})
    write_repo("bad/json", {"adapter_config.json": "{", "config.json": "[" * 100_000})
    write_repo("bad/shape", {"adapter_config.json": "[1]", "config.json": {"architectures": {"a": 1}, "model_type": 3}})
    write_repo("bad/surrogate", {"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "\\ud800"}'})
    write_repo("bad/huge-int", {"adapter_config.json": '{"peft_type": "LORA", "r": ' + "9" * 4000 + "}"})
    write_repo("bad/settings", downloads="many", created_at="yesterday", gated=3, tags={"a": 1}, _id="zz", likes=1e400)
    broken = write_repo("bad/hub-json")
    (broken / ".hub.json").write_text("{{{")
    write_adapter("good/one")

    found = {model.id: model for model in client.list_models(full=True, cardData=True, fetch_config=True)}
    assert len(found) == len(cards) + 7
    assert "base_model:ok/name" in (found["bad/types"].tags or [])
    assert found["good/one"].library_name == "peft"


def test_private_repos_show_only_with_a_token(hub: HubServer, write_repo) -> None:
    write_repo("o/open", {"a.txt": "a"})
    write_repo("o/closed", {"a.txt": "a"}, private=True)
    assert ids(HfApi(endpoint=hub.endpoint, token=False).list_models()) == ["o/open"]
    assert sorted(ids(HfApi(endpoint=hub.endpoint, token="hf_any").list_models())) == ["o/closed", "o/open"]


def test_a_repo_is_listed_before_it_has_files_and_gone_when_deleted(client: HfApi, write_adapter, write_repo) -> None:
    folder = write_repo("o/early")
    [early] = client.list_models(full=True)
    assert early.siblings == []
    write_adapter("o/early")
    [filled] = client.list_models(full=True)
    assert filled.sha != early.sha
    assert filled.last_modified is not None and early.last_modified is not None
    assert filled.last_modified >= early.last_modified
    shutil.rmtree(folder)
    assert ids(client.list_models()) == []


@pytest.mark.serial
def test_many_repos_list_fast(tmp_path: Path) -> None:
    for number in range(600):
        folder = tmp_path / f"owner{number % 100}" / f"adapter-{number}"
        folder.mkdir(parents=True)
        config = {"peft_type": "LORA", "base_model_name_or_path": "bases/tiny", "r": number}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "README.md").write_text("---\nlibrary_name: peft\ntags: [lora]\n---\n")
    with running_hub(tmp_path) as hub:
        client = HfApi(endpoint=hub.endpoint, token=False)
        assert len(list(client.list_models(filter="peft"))) == 600
        start = time.process_time()
        assert len(list(client.list_models(filter="peft", expand=["sha", "siblings", "baseModels"]))) == 600
        assert time.process_time() - start < 1


def test_files_beside_the_repos_are_not_repos(registry: Path, client: HfApi, write_repo, tmp_path: Path) -> None:
    write_repo("o/real", {"a.txt": "a"})
    (registry / "labels.json").write_text("[]")
    (registry / "o" / "notes.txt").write_text("x")
    (registry / ".git" / "objects").mkdir(parents=True)
    outside = tmp_path / "outside" / "repo"
    outside.mkdir(parents=True)
    (registry / "linked").symlink_to(outside.parent)
    (registry / "o" / "linked").symlink_to(outside)
    assert ids(client.list_models()) == ["o/real"]


def test_an_empty_folder_is_an_empty_hub(registry: Path) -> None:
    with running_hub(registry) as hub:
        assert list(HfApi(endpoint=hub.endpoint, token=False).list_models()) == []
