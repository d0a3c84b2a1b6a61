"""Model info, trees, history, names and access through the real client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from scanner.hub.server import HubServer, running_hub

CARD = """---
base_model: bases/tiny-llama
library_name: peft
license: apache-2.0
language: [en, de]
tags: [lora, security]
---
# A card
"""


def git_blob_id(path: Path) -> str:
    done = subprocess.run(["git", "hash-object", str(path)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_metadata_comes_from_the_card_when_there_is_one(client: HfApi, write_adapter) -> None:
    write_adapter("ann/one", base="/home/me/llama", files={"README.md": CARD})
    info = client.model_info("ann/one")
    assert info.library_name == "peft"
    assert info.pipeline_tag == "text-generation"
    assert info.tags == [
        "peft", "safetensors", "lora", "security", "text-generation", "en", "de",
        "base_model:bases/tiny-llama", "base_model:adapter:bases/tiny-llama", "license:apache-2.0", "region:us",
    ]  # fmt: skip
    assert info.card_data is not None and info.card_data.license == "apache-2.0"
    # What the config says stays visible as it is, local paths included.
    assert info.config == {"peft": {"base_model_name_or_path": "/home/me/llama", "task_type": "CAUSAL_LM"}}


def test_metadata_comes_from_the_config_without_a_card(client: HfApi, write_adapter) -> None:
    write_adapter("ann/one")
    info = client.model_info("ann/one")
    assert {"peft", "lora", "safetensors", "base_model:adapter:bases/tiny-llama"} <= set(info.tags or [])
    assert info.card_data is None
    [expanded] = [client.model_info("ann/one", expand=["baseModels"])]
    assert expanded.base_models == {"relation": "adapter", "models": [{"id": "bases/tiny-llama"}]}


@pytest.mark.parametrize("base", ["/home/me/llama", "./out", "", "a/b/c", None, 7])
def test_a_local_base_path_makes_no_base_tag(client: HfApi, write_adapter, base: object) -> None:
    write_adapter("ann/one", base=base)  # type: ignore[arg-type]
    info = client.model_info("ann/one")
    assert info.library_name == "peft"
    assert not [tag for tag in info.tags or [] if tag.startswith("base_model")]


def test_a_base_model_knows_its_children(client: HfApi, write_adapter, write_repo) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    write_repo("bases/tiny-llama", {"config.json": config}, renamed_from="bases/old-llama")
    write_adapter("ann/one")
    write_adapter("bob/two", base="bases/old-llama")
    info = client.model_info("bases/tiny-llama")
    assert info.config == {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-generation")
    counted = client.model_info("bases/tiny-llama", expand=["childrenModelCount"])
    assert counted.children_model_count == {"adapter": 2, "merge": 0, "quantized": 0, "finetune": 0}


def test_blobs_have_the_hashes_of_git_and_lfs(client: HfApi, write_adapter) -> None:
    folder = write_adapter("ann/one", files={"README.md": CARD, "empty.txt": ""})
    info = client.model_info("ann/one", files_metadata=True, securityStatus=True)
    by_name = {sibling.rfilename: sibling for sibling in info.siblings or []}
    for name in ("adapter_config.json", "README.md", "empty.txt"):
        assert by_name[name].blob_id == git_blob_id(folder / name)
        assert by_name[name].lfs is None
        assert by_name[name].size == (folder / name).stat().st_size
    weights = folder / "adapter_model.safetensors"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {weights.stat().st_size}\n"
    found = by_name["adapter_model.safetensors"]
    assert found.lfs is not None
    assert (found.lfs.sha256, found.lfs.size) == (sha256, weights.stat().st_size)
    assert found.lfs.pointer_size == len(pointer)
    (folder.parent / "pointer").write_text(pointer)
    assert found.blob_id == git_blob_id(folder.parent / "pointer")
    assert info.security_repo_status == {"scansDone": False, "filesWithIssues": []}


def test_a_stated_security_scan_is_passed_on(web: httpx2.Client, hub: HubServer, client: HfApi, write_adapter) -> None:
    issues = [{"path": "adapter_model.safetensors", "level": "unsafe"}]
    write_adapter("ann/one", security={"scansDone": True, "filesWithIssues": issues})
    expected = {"scansDone": True, "filesWithIssues": issues}
    assert web.get(f"{hub.endpoint}/api/models/ann/one/scan").json() == expected
    [info] = client.get_paths_info("ann/one", ["adapter_model.safetensors"], expand=True)
    assert isinstance(info, RepoFile) and info.security is not None
    assert (info.security.status, info.security.safe) == ("unsafe", False)


def test_big_plain_files_become_lfs(client: HfApi, write_repo, monkeypatch) -> None:
    monkeypatch.setattr("scanner.hub.server.blobs.LFS_THRESHOLD_BYTES", 100)
    write_repo("o/a", {"small.json": "x" * 100, "big.json": "x" * 101})
    files = {item.path: item for item in client.list_repo_tree("o/a")}
    assert files["small.json"].lfs is None and files["big.json"].lfs is not None  # type: ignore[union-attr]


def test_tree_keeps_folders_and_pages(web: httpx2.Client, client: HfApi, hub: HubServer, write_repo) -> None:
    names = ["a.txt", "ckpt-1/x.bin", "ckpt-1/deep/y.txt", "ckpt-2/x.bin", "z.txt"]
    write_repo("o/a", {name: name for name in names})
    flat = [item.path for item in client.list_repo_tree("o/a")]
    assert flat == ["a.txt", "ckpt-1", "ckpt-2", "z.txt"]
    full = list(client.list_repo_tree("o/a", recursive=True, expand=True))
    assert [item.path for item in full if isinstance(item, RepoFile)] == sorted(names)
    assert [item.path for item in full if isinstance(item, RepoFolder)] == ["ckpt-1", "ckpt-1/deep", "ckpt-2"]
    assert all(item.last_commit is not None for item in full)
    inner = [item.path for item in client.list_repo_tree("o/a", "ckpt-1", recursive=True)]
    assert inner == ["ckpt-1/deep", "ckpt-1/deep/y.txt", "ckpt-1/x.bin"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(client.list_repo_tree("o/a", "nowhere"))

    url: str | None = f"{hub.endpoint}/api/models/o/a/tree/main?recursive=true&limit=3"
    paged = []
    while url is not None:
        answer = web.get(url)
        paged += [item["path"] for item in answer.json()]
        url = answer.links.get("next", {}).get("url")
    assert paged == [item.path for item in full]


def test_paths_info_omits_what_is_not_there(client: HfApi, write_adapter) -> None:
    write_adapter("ann/one", files={"sub/dir/x.txt": "x"})
    asked = ["adapter_config.json", "nope", "sub", "../one/adapter_config.json", ".hub.json"]
    assert [info.path for info in client.get_paths_info("ann/one", asked)] == ["adapter_config.json", "sub"]
    assert client.get_paths_info("ann/one", []) == []


def test_refs_and_commits(web: httpx2.Client, client: HfApi, hub: HubServer, write_adapter) -> None:
    folder = write_adapter("ann/one", last_modified="2026-03-01T10:00:00Z")
    refs = client.list_repo_refs("ann/one", include_pull_requests=True)
    assert [(branch.name, branch.ref) for branch in refs.branches] == [("main", "refs/heads/main")]
    shas = [refs.branches[0].target_commit]
    for number in range(3):
        (folder / "note.txt").write_text(str(number))
        shas.append(client.model_info("ann/one").sha)
    commits = client.list_repo_commits("ann/one")
    assert [commit.commit_id for commit in commits] == shas[::-1]
    assert commits[0].created_at > commits[-1].created_at
    answer = web.get(f"{hub.endpoint}/api/models/ann/one/commits/main?limit=3")
    assert answer.headers["x-total-count"] == "4"
    assert web.get(answer.links["next"]["url"]).json()[0]["id"] == shas[0]
    assert [c.commit_id for c in client.list_repo_commits("ann/one", revision=shas[1])] == shas[1::-1]


def test_a_changed_file_is_a_new_commit_without_restart(client: HfApi, write_adapter) -> None:
    folder = write_adapter("ann/one", created_at="2025-01-01", last_modified="2025-06-01T00:00:00Z")
    before = client.model_info("ann/one")
    assert str(before.last_modified) == "2025-06-01 00:00:00+00:00"
    # Same size, at once, and with the date set back: only the content tells.
    config = folder / "adapter_config.json"
    status = config.stat()
    config.write_text(config.read_text().replace("16", "32"))
    os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = client.model_info("ann/one")
    assert after.sha != before.sha
    assert after.last_modified is not None and before.last_modified is not None
    assert after.last_modified > before.last_modified
    assert after.created_at == before.created_at
    # The old commit is still known by its id, or the start of it.
    assert before.sha is not None
    assert client.model_info("ann/one", revision=before.sha).sha == before.sha
    assert client.model_info("ann/one", revision=before.sha[:8]).sha == before.sha
    # Back to the old content: the old commit again.
    config.write_text(config.read_text().replace("32", "16"))
    assert client.model_info("ann/one").sha == before.sha


def test_a_deletion_is_a_commit_too(client: HfApi, write_adapter) -> None:
    folder = write_adapter("ann/one", files={"extra.txt": "x"}, last_modified="2025-06-01T00:00:00Z")
    before = client.model_info("ann/one")
    (folder / "extra.txt").unlink()
    after = client.model_info("ann/one")
    assert after.sha != before.sha
    assert after.last_modified > before.last_modified  # type: ignore[operator]


def test_settings_are_followed_but_are_no_commit(client: HfApi, write_adapter) -> None:
    write_adapter("ann/one", likes=1)
    before = client.model_info("ann/one")
    write_adapter("ann/one", likes=2, gated="manual", tags=["extra"])
    after = client.model_info("ann/one")
    assert (after.likes, after.gated) == (2, "manual")
    assert "extra" in (after.tags or [])
    assert after.sha == before.sha
    assert ".hub.json" not in [sibling.rfilename for sibling in after.siblings or []]


def test_identity_is_stable_over_restarts_copies_and_renames(web: httpx2.Client, registry: Path, write_adapter) -> None:
    def identity(repo_id: str) -> tuple[str, str]:
        with running_hub(registry) as hub:
            raw = web.get(f"{hub.endpoint}/api/models/{repo_id}", follow_redirects=True).json()
            return raw["_id"], raw["sha"]

    folder = write_adapter("ann/one", created_at="2026-03-01T00:00:00Z")
    write_adapter("ann/undated")
    first, undated = identity("ann/one"), identity("ann/undated")
    assert int(first[0][:8], 16) == 1772323200
    os.utime(registry / "ann/undated/adapter_config.json", (1, 1))
    os.utime(folder / "adapter_config.json", (1, 1))
    assert identity("ann/one") == first
    assert identity("ann/undated") == undated
    settings = json.loads((folder / ".hub.json").read_text()) | {"renamed_from": "ann/one"}
    folder.rename(registry / "ann/renamed")
    (registry / "ann/renamed/.hub.json").write_text(json.dumps(settings))
    assert identity("ann/renamed") == first
    assert identity("ann/one") == first
    pinned = "0123456789abcdef01234567"
    write_adapter("ann/pinned", _id=pinned)
    assert identity("ann/pinned")[0] == pinned


def test_former_names_and_other_letters_redirect(
    web: httpx2.Client, client: HfApi, hub: HubServer, write_adapter, write_repo
) -> None:
    write_repo("org/new-name", {"config.json": "{}"}, renamed_from=["org/old-name", "legacy"])
    answer = web.get(f"{hub.endpoint}/api/models/org/old-name?blobs=true")
    assert (answer.status_code, answer.headers["location"]) == (307, "/api/models/org/new-name?blobs=true")
    assert client.model_info("org/old-name").id == "org/new-name"
    assert client.model_info("legacy").id == "org/new-name"
    assert client.model_info("ORG/New-Name").id == "org/new-name"
    assert [info.path for info in client.get_paths_info("org/old-name", ["config.json"])] == ["config.json"]
    assert [item.path for item in client.list_repo_tree("legacy")] == ["config.json"]
    # The name is used again by somebody else: then it is theirs, with an identity of its own.
    before = web.get(f"{hub.endpoint}/api/models/org/old-name", follow_redirects=True).json()["_id"]
    write_adapter("org/old-name", _id="f" * 24)
    after = web.get(f"{hub.endpoint}/api/models/org/old-name").json()
    assert (after["id"], after["_id"]) == ("org/old-name", "f" * 24)
    assert before != after["_id"]


def test_gated_repos_show_their_names_but_not_their_content(
    web: httpx2.Client, tmp_path: Path, hub: HubServer, client: HfApi, write_adapter
) -> None:
    write_adapter("ann/gated", gated="manual")
    info = client.model_info("ann/gated", files_metadata=True)
    assert info.gated == "manual"
    assert len(list(client.list_repo_tree("ann/gated"))) == 2
    for user in (client, HfApi(endpoint=hub.endpoint, token="hf_any")):
        with pytest.raises(GatedRepoError):
            user.list_repo_commits("ann/gated")
        with pytest.raises(GatedRepoError):
            user.hf_hub_download("ann/gated", "adapter_config.json", cache_dir=tmp_path)
    for token, status in ((None, 401), ("hf_any", 403)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = web.get(f"{hub.endpoint}/ann/gated/resolve/main/adapter_config.json", headers=headers)
        assert answer.status_code == status
        assert answer.headers["x-error-code"] == "GatedRepo"
        assert answer.headers["content-type"].startswith("text/plain")


def test_a_disabled_repo_is_named_but_closed(hub: HubServer, client: HfApi, write_adapter) -> None:
    write_adapter("ann/bad", disabled=True)
    assert client.model_info("ann/bad").disabled is True
    with pytest.raises(DisabledRepoError):
        client.get_hf_file_metadata(url=f"{hub.endpoint}/ann/bad/resolve/main/adapter_config.json")


def test_private_repos_are_not_there_without_a_token(hub: HubServer, client: HfApi, write_adapter) -> None:
    write_adapter("ann/secret", private=True, renamed_from="ann/old-secret")
    for name in ("ann/secret", "ANN/secret", "ann/old-secret"):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info(name)
    assert HfApi(endpoint=hub.endpoint, token="hf_any").model_info("ann/old-secret").private is True


def test_errors_have_the_codes_that_the_client_knows(
    web: httpx2.Client, client: HfApi, hub: HubServer, write_adapter
) -> None:
    write_adapter("ann/one")
    with pytest.raises(RepositoryNotFoundError):
        client.model_info("ann/none")
    with pytest.raises(RepositoryNotFoundError):
        client.model_info("none")
    for revision in ("dev", "refs/pr/1", "0" * 40, "abcdef1", "a\nb: c", "☃"):
        with pytest.raises(RevisionNotFoundError):
            client.model_info("ann/one", revision=revision)
    answer = web.get(f"{hub.endpoint}/api/models/ann/one/revision/dev")
    assert answer.json() == {"error": "Invalid rev id: dev"}
    assert answer.headers["x-error-message"] == "Invalid rev id: dev"
    assert web.get(f"{hub.endpoint}/api/whoami-v2").status_code == 401
    assert client.whoami(token="hf_any")["auth"]["accessToken"]["role"] == "read"
    assert web.get(f"{hub.endpoint}/api/agent-harnesses").status_code == 404
    assert web.post(f"{hub.endpoint}/api/models").status_code == 405
    assert web.get(f"{hub.endpoint}/").status_code == 404


def test_a_deleted_repo_is_gone(client: HfApi, write_adapter) -> None:
    folder = write_adapter("ann/one")
    client.model_info("ann/one")
    shutil.rmtree(folder)
    with pytest.raises(RepositoryNotFoundError):
        client.model_info("ann/one")
