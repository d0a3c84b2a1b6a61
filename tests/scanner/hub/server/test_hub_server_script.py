"""State over time: what happens to a repo between two requests of a client, and what the client sees then."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from scanner.errors import UsageError
from scanner.hub.server import HubServer, running_hub
from scanner.hub.server import actions as acts
from scanner.hub.server.blobs import BLOBS_FOLDER

WEIGHTS = "adapter_model.safetensors"
LISTING = "^/api/models$"


def ids(models) -> list[str]:
    return [model.id for model in models]


def day(number: int) -> str:
    return f"2026-03-{number:02d}T00:00:00.000Z"


def fetch(client: HfApi, name: str, sha: str | None, folder: Path, file: str = WEIGHTS) -> bytes:
    return Path(client.hf_hub_download(name, file, revision=sha, cache_dir=folder / str(sha))).read_bytes()


def test_a_new_commit_between_list_and_download_leaves_the_pinned_one_whole(
    tensor_file, hub: HubServer, client: HfApi, registry: Path, write_adapter, tmp_path: Path
) -> None:
    write_adapter("ann/one", files={"old.txt": "old"})
    change = {WEIGHTS: tensor_file(fill=1), "old.txt": None, "sub/new.txt": "new"}
    hub.script.on(LISTING, partial(acts.commit, registry, "ann/one", change), after=True)
    [listed] = client.list_models(full=True)
    assert hub.script.pending() == 0
    head = client.model_info("ann/one")
    assert head.sha != listed.sha
    assert head.last_modified > listed.last_modified  # type: ignore[operator]
    assert fetch(client, "ann/one", listed.sha, tmp_path) == tensor_file()
    assert fetch(client, "ann/one", listed.sha, tmp_path, "old.txt") == b"old"
    assert fetch(client, "ann/one", head.sha, tmp_path) == tensor_file(fill=1)
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(client, "ann/one", listed.sha, tmp_path, "sub/new.txt")
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(client, "ann/one", head.sha, tmp_path, "old.txt")
    tree = [item.path for item in client.list_repo_tree("ann/one", revision=listed.sha)]
    assert tree == ["adapter_config.json", WEIGHTS, "old.txt"]


def test_small_files_of_a_pinned_commit_come_from_the_cache_route_too(
    web: httpx2.Client, hub: HubServer, registry: Path, write_adapter
) -> None:
    write_adapter("ann/one", files={"a.txt": "old"})
    sha = web.get(f"{hub.endpoint}/api/models/ann/one").json()["sha"]
    acts.commit(registry, "ann/one", {"a.txt": "new"})
    url = f"{hub.endpoint}/api/resolve-cache/models/ann/one/{sha}/a.txt"
    assert web.get(url).text == "old"
    weights = web.get(f"{hub.endpoint}/api/resolve-cache/models/ann/one/{sha}/{WEIGHTS}")
    assert (weights.status_code, weights.headers["x-error-code"]) == (404, "EntryNotFound")


def test_kept_contents_are_bounded_and_never_served_by_name(
    web: httpx2.Client, hub: HubServer, registry: Path, write_adapter, monkeypatch
) -> None:
    monkeypatch.setattr(acts, "MAX_KEPT_BYTES", 10_000)
    folder = write_adapter("ann/one", files={"big.txt": "x" * 20_000})
    acts.commit(registry, "ann/one", {"big.txt": "y"})
    for number in range(9):
        acts.commit(registry, "ann/one", {"a.txt": str(number) * 3000})
    kept = list((folder / BLOBS_FOLDER).iterdir())
    assert 0 < sum(path.stat().st_size for path in kept) <= 10_000
    names = [item["path"] for item in web.get(f"{hub.endpoint}/api/models/ann/one/tree/main?recursive=1").json()]
    assert names == ["a.txt", "adapter_config.json", WEIGHTS, "big.txt"]
    assert web.get(f"{hub.endpoint}/ann/one/resolve/main/{BLOBS_FOLDER}/{kept[0].name}").status_code == 404


def test_a_kept_content_behind_a_link_is_not_served(
    web: httpx2.Client, hub: HubServer, registry: Path, write_adapter, tmp_path: Path
) -> None:
    folder = write_adapter("ann/one", files={"a.txt": "old"})
    sha = web.get(f"{hub.endpoint}/api/models/ann/one").json()["sha"]
    acts.commit(registry, "ann/one", {"a.txt": "new"})
    (folder / ".hub").rename(tmp_path / "outside")
    (folder / ".hub").symlink_to(tmp_path / "outside")
    assert web.get(f"{hub.endpoint}/api/resolve-cache/models/ann/one/{sha}/a.txt").status_code == 404


@pytest.mark.parametrize("same_files", [False, True])
def test_a_force_push_between_list_and_download_ends_the_old_commit(
    tensor_file, hub: HubServer, client: HfApi, registry: Path, write_adapter, tmp_path: Path, same_files: bool
) -> None:
    write_adapter("ann/one")
    files = {} if same_files else {WEIGHTS: tensor_file(fill=1)}
    acts.commit(registry, "ann/one", {"a.txt": "a"})
    hub.script.on(LISTING, partial(acts.force_push, registry, "ann/one", files), after=True)
    [listed] = client.list_models(full=True)
    with pytest.raises(RevisionNotFoundError):
        fetch(client, "ann/one", listed.sha, tmp_path)
    head = client.model_info("ann/one")
    assert head.sha != listed.sha
    assert [commit.commit_id for commit in client.list_repo_commits("ann/one")] == [head.sha]
    assert fetch(client, "ann/one", head.sha, tmp_path) == tensor_file(fill=0 if same_files else 1)


def test_a_rename_between_list_and_download_keeps_identity_and_history(
    tensor_file, web: httpx2.Client, hub: HubServer, client: HfApi, registry: Path, write_adapter, tmp_path: Path
) -> None:
    write_adapter("ann/one")
    first = client.model_info("ann/one")
    acts.commit(registry, "ann/one", {WEIGHTS: tensor_file(fill=1)})
    hub.script.on(LISTING, partial(acts.rename, registry, "ann/one", "bob/two"), after=True)
    [listed] = client.list_models(full=True)
    answer = web.get(f"{hub.endpoint}/api/models/ann/one")
    assert (answer.status_code, answer.headers["location"]) == (307, "/api/models/bob/two")
    moved = client.model_info("ann/one")
    assert (moved.id, moved.sha, moved._id) == ("bob/two", listed.sha, listed._id)  # type: ignore[attr-defined]
    assert fetch(client, "ann/one", listed.sha, tmp_path) == tensor_file(fill=1)
    assert fetch(client, "ann/one", first.sha, tmp_path) == tensor_file()
    assert [commit.commit_id for commit in client.list_repo_commits("ann/one")] == [listed.sha, first.sha]
    assert ids(client.list_models()) == ["bob/two"]


@pytest.mark.parametrize("first_asked", ["ann/one", "bob/two"])
def test_a_name_that_is_used_again_is_another_repo(
    tensor_file, hub: HubServer, client: HfApi, registry: Path, write_adapter, tmp_path: Path, first_asked: str
) -> None:
    write_adapter("ann/one")
    before = client.model_info("ann/one")
    files = {WEIGHTS: tensor_file(fill=9)}
    hub.script.on("^/ann/one/resolve/", partial(acts.reuse_name, registry, "ann/one", "bob/two", files))
    with pytest.raises(RevisionNotFoundError):  # the pinned commit is the other repo's now
        fetch(client, "ann/one", before.sha, tmp_path)
    client.model_info(first_asked)
    new, moved = client.model_info("ann/one"), client.model_info("bob/two")
    assert moved._id == before._id != new._id  # type: ignore[attr-defined]
    assert (moved.sha, new.id) == (before.sha, "ann/one")
    assert fetch(client, "bob/two", before.sha, tmp_path) == tensor_file()
    with pytest.raises(RevisionNotFoundError):
        client.model_info("ann/one", revision=before.sha)


def test_deleting_between_list_and_download(
    hub: HubServer, client: HfApi, registry: Path, write_adapter, tmp_path: Path
) -> None:
    write_adapter("ann/one")
    hub.script.on(LISTING, partial(acts.delete, registry, "ann/one"), after=True)
    [listed] = client.list_models(full=True)
    with pytest.raises(RepositoryNotFoundError):
        fetch(client, "ann/one", listed.sha, tmp_path)
    # The same name, made again at once: another repo, with nothing of the old one's history.
    acts.create(registry, "ann/one", {"a.txt": "a"})
    again = client.model_info("ann/one")
    assert again._id != listed._id  # type: ignore[attr-defined]
    with pytest.raises(RevisionNotFoundError):
        client.model_info("ann/one", revision=listed.sha)


def test_deleting_one_file(client: HfApi, registry: Path, write_adapter, tmp_path: Path) -> None:
    write_adapter("ann/one", files={"a.txt": "a"})
    before = client.model_info("ann/one")
    acts.delete_file(registry, "ann/one", "a.txt")
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(client, "ann/one", None, tmp_path, "a.txt")
    assert fetch(client, "ann/one", before.sha, tmp_path, "a.txt") == b"a"


@pytest.mark.parametrize(
    ("state", "error"),
    [({"gated": "manual"}, GatedRepoError), ({"disabled": True}, DisabledRepoError),
     ({"private": True}, RepositoryNotFoundError)],
)  # fmt: skip
def test_closing_between_list_and_download(
    hub: HubServer, client: HfApi, registry: Path, write_adapter, tmp_path: Path, state: dict, error: type[Exception]
) -> None:
    write_adapter("ann/one", likes=3)
    hub.script.on(LISTING, partial(acts.set_state, registry, "ann/one", **state), after=True)
    [listed] = client.list_models(full=True)
    with pytest.raises((error, LocalEntryNotFoundError)) as caught:
        fetch(client, "ann/one", listed.sha, tmp_path)
    # Of a refusal that it does not expect the client says "check your connection", with the reason behind it.
    assert error in (type(caught.value), type(caught.value.__cause__))
    acts.set_state(registry, "ann/one", **dict.fromkeys(state))
    assert fetch(client, "ann/one", listed.sha, tmp_path)
    assert client.model_info("ann/one").likes == 3


def test_created_empty_and_filled_later(hub: HubServer, client: HfApi, registry: Path) -> None:
    acts.create_empty(registry, "ann/one")
    [early] = client.list_models(full=True)
    assert [sibling.rfilename for sibling in early.siblings or []] == [".gitattributes"]
    acts.commit(registry, "ann/one", {"adapter_config.json": '{"peft_type": "LORA"}', WEIGHTS: b"\0"})
    [filled] = client.list_models(filter="peft", full=True)
    assert filled._id == early._id and filled.sha != early.sha  # type: ignore[attr-defined]
    assert filled.created_at == early.created_at
    assert filled.last_modified >= early.last_modified  # type: ignore[operator]


def test_new_repos_on_top_of_a_listing_in_progress_shift_nothing(registry: Path, write_repo) -> None:
    for number in range(1, 7):
        write_repo(f"o/r{number}", created_at=day(number))
    with running_hub(registry, max_page=2) as hub:
        for count in (2, 3):
            hub.script.on(LISTING, partial(acts.create_empty, registry, f"o/new{count}"), count=count)
        client = HfApi(endpoint=hub.endpoint, token=False)
        assert ids(client.list_models(sort="created_at")) == [f"o/r{n}" for n in (6, 5, 4, 3, 2, 1)]
        assert ids(client.list_models(sort="created_at"))[:2] == ["o/new3", "o/new2"]


def test_a_repo_that_is_modified_while_paging_is_missed_by_that_listing(registry: Path, write_repo) -> None:
    # As on the Hub: the order's key moves it in front of the cursor. Whoever polls needs an overlap.
    for number in range(1, 6):
        write_repo(f"o/r{number}", {"a.txt": str(number)}, created_at=day(number), last_modified=day(number))
    with running_hub(registry, max_page=2) as hub:
        hub.script.on(LISTING, partial(acts.commit, registry, "o/r1", {"a.txt": "new"}), after=True)
        client = HfApi(endpoint=hub.endpoint, token=False)
        assert ids(client.list_models(sort="last_modified")) == ["o/r5", "o/r4", "o/r3", "o/r2"]
        assert ids(client.list_models(sort="last_modified"))[0] == "o/r1"


def test_a_step_waits_for_its_request(web: httpx2.Client, hub: HubServer, registry: Path, write_repo) -> None:
    write_repo("o/a", {"a.txt": "a"})
    happened: list[str] = []
    hub.script.on("^/o/a/", lambda: happened.append("head"), method="head", count=2)
    hub.script.on("", lambda: happened.append("cdn"), host="cdn")
    url = f"{hub.endpoint}/o/a/resolve/main/a.txt"
    web.get(url), web.head(url)
    assert (happened, hub.script.pending()) == ([], 2)
    web.head(url)
    assert happened == ["head"]
    hub.script.clear()
    assert hub.script.pending() == 0


def test_before_shows_in_the_answer_and_after_does_not(
    web: httpx2.Client, hub: HubServer, registry: Path, write_repo
) -> None:
    write_repo("o/a", {"a.txt": "1"})
    url = f"{hub.endpoint}/api/models/o/a"
    shas = [web.get(url).json()["sha"]]
    hub.script.on("o/a$", partial(acts.commit, registry, "o/a", {"a.txt": "2"}))
    shas.append(web.get(url).json()["sha"])
    hub.script.on("o/a$", partial(acts.commit, registry, "o/a", {"a.txt": "3"}), after=True)
    shas.append(web.get(url).json()["sha"])
    shas.append(web.get(url).json()["sha"])
    assert shas[0] != shas[1] == shas[2] != shas[3]


def test_after_holds_for_answers_without_a_body(web: httpx2.Client, hub: HubServer, registry: Path, write_repo) -> None:
    write_repo("o/a", {"a.txt": "1", "b.bin": "b"})
    for name, status in (("a.txt", 307), ("b.bin", 302)):
        hub.script.on(f"resolve/main/{name}", partial(acts.set_state, registry, "o/a", likes=status), after=True)
        assert web.head(f"{hub.endpoint}/o/a/resolve/main/{name}").status_code == status
        assert web.get(f"{hub.endpoint}/api/models/o/a").json()["likes"] == status


def test_faults_and_a_script_in_one_file(web: httpx2.Client, registry: Path, write_repo, tmp_path: Path) -> None:
    from scanner.hub.server.faults import Fault, load_faults
    from scanner.hub.server.script import Script, load_script

    write_repo("o/a", {"a.txt": "1"})
    path = tmp_path / "faults.json"
    commit = {"action": "commit", "repo": "o/a", "files": {"a.txt": "2", "b.bin": {"base64": "AAE="}}}
    step = {"on": "^/api/models", "count": 1, "method": "GET", "after": False, "do": commit}
    path.write_text(json.dumps({"faults": [{"kind": "drop"}], "script": [step]}))
    assert load_faults(path) == [Fault("drop")]
    script = Script()
    load_script(path, registry, script)
    [[action], []] = script.due("api", "GET", "/api/models")
    action()
    assert (registry / "o/a/a.txt").read_text() == "2"
    assert (registry / "o/a/b.bin").read_bytes() == b"\0\1"
    path.write_text('[{"kind": "drop"}]')
    load_script(path, registry, script)
    assert script.pending() == 0


def test_a_script_over_http(web: httpx2.Client, hub: HubServer, registry: Path, write_repo) -> None:
    write_repo("o/a", {"a.txt": "1"})
    url = f"{hub.endpoint}/_hub/faults"
    step = {"on": "^/api/models/o/a$", "do": {"action": "rename", "repo": "o/a", "new": "o/b"}}
    assert web.post(url, json={"script": [step], "faults": []}).status_code == 200
    assert web.get(f"{hub.endpoint}/api/models/o/a").headers["location"] == "/api/models/o/b"
    for wrong in (
        {"on": "x"}, {"on": 1, "do": step["do"]}, {**step, "when": 1}, {**step, "count": "2"}, {**step, "on": "("},
        {"on": "x", "do": {"action": "explode"}}, {"on": "x", "do": {"action": "rename", "repo": "o/a"}},
        {"on": "x", "do": {"action": "delete", "repo": "o/a", "colour": 1}}, 7,
    ):  # fmt: skip
        answer = web.post(url, json={"script": [wrong]})
        assert answer.status_code == 400, wrong
    assert hub.script.pending() == 0
    assert web.post(url, json={"script": [step]}).status_code == 200
    web.delete(url)
    assert hub.script.pending() == 0


@pytest.mark.parametrize("name", ["../x", "/etc/x", ".hub.json", "a/../../x", "", ".git/config", "link/x"])
def test_actions_write_inside_of_repos_only(registry: Path, write_repo, tmp_path: Path, name: str) -> None:
    folder = write_repo("o/a", {"a.txt": "1"})
    (folder / "link").symlink_to(tmp_path)
    for act in (acts.commit, acts.force_push):
        with pytest.raises(UsageError, match="no path of a file"):
            act(registry, "o/a", {name: "x"})
    assert not (tmp_path / "x").exists() and not (registry / "x").exists()


def test_actions_on_what_is_not_there(registry: Path, write_repo) -> None:
    write_repo("o/a", {"a.txt": "1"})
    for act in (
        partial(acts.commit, registry, "o/none", {}),
        partial(acts.delete, registry, "../registry"),
        partial(acts.create, registry, "o/a"),
        partial(acts.create, registry, "../o/b"),
        partial(acts.rename, registry, "o/a", "o/a"),
        partial(acts.rename, registry, "o/a", "../../b"),
    ):
        with pytest.raises(UsageError):
            act()
    assert (registry / "o/a/a.txt").read_text() == "1"
