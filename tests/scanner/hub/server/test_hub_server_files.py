"""Downloads through the real client: redirects, the CDN, ranges, commits, and what must never be served."""

from __future__ import annotations

import hashlib
import http.client
import os
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanner.hub.server import HubServer
from scanner.hub.server.repos import HubFolder

WEIGHTS = "adapter_model.safetensors"


def test_small_file_chain(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    folder = write_adapter("ann/one", files={"dir with space/ünï#?.txt": "hello"})
    content = (folder / "adapter_config.json").read_bytes()
    blob_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    answer = web.head(f"{hub.endpoint}/ann/one/resolve/main/adapter_config.json")
    assert answer.status_code == 307
    sha = answer.headers["x-repo-commit"]
    location = answer.headers["location"]
    assert location.startswith(f"/api/resolve-cache/models/ann/one/{sha}/adapter_config.json?")
    assert location.endswith(f"&etag=%22{blob_id}%22")
    assert answer.headers["x-linked-etag"] == f'"{blob_id}"'
    assert answer.headers["x-linked-size"] == str(len(content))
    head = web.head(hub.endpoint + location)
    assert (head.status_code, head.headers["etag"]) == (200, f'"{blob_id}"')
    assert head.headers["content-length"] == str(len(content))
    assert head.headers["x-repo-commit"] == sha
    assert web.get(hub.endpoint + location).content == content
    odd = quote("dir with space/ünï#?.txt")
    assert web.get(f"{hub.endpoint}/ann/one/resolve/main/{odd}", follow_redirects=True).text == "hello"


def test_lfs_file_chain(web: httpx2.Client, hub: HubServer, write_adapter) -> None:
    content = (write_adapter("ann/one") / WEIGHTS).read_bytes()
    answer = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}")
    assert answer.status_code == 302
    sha256 = hashlib.sha256(content).hexdigest()
    assert answer.headers["x-linked-etag"] == f'"{sha256}"'
    assert answer.headers["x-linked-size"] == str(len(content))
    assert answer.headers["accept-ranges"] == "bytes"
    assert "x-xet-hash" not in answer.headers
    url = urlsplit(answer.headers["location"])
    assert (url.hostname, urlsplit(hub.endpoint).hostname) == ("localhost", "127.0.0.1")
    assert f"{url.scheme}://{url.netloc}" == hub.cdn_endpoint
    location = answer.headers["location"]
    assert web.head(location).headers["content-length"] == str(len(content))
    whole = web.get(location)
    assert whole.content == content
    assert sha256 not in whole.headers["etag"]
    part = web.get(location, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    rest = web.get(location, headers={"Range": f"bytes={len(content) - 5}-"})
    assert (rest.status_code, rest.content) == (206, content[-5:])
    beyond = web.get(location, headers={"Range": f"bytes={len(content)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(content)}")


def test_the_client_downloads_both_kinds(client: HfApi, hub: HubServer, write_adapter, tmp_path: Path) -> None:
    folder = write_adapter("ann/one", files={"sub/notes.txt": "n", "empty.json": ""}, renamed_from="ann/former")
    for name in ("adapter_config.json", WEIGHTS, "sub/notes.txt", "empty.json"):
        path = client.hf_hub_download("ann/one", name, cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == (folder / name).read_bytes()
    meta = client.get_hf_file_metadata(url=f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}")
    assert meta.xet_file_data is None
    assert meta.etag == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    renamed = client.hf_hub_download("ann/former", WEIGHTS, cache_dir=tmp_path / "other")
    assert Path(renamed).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert not [record for record in hub.request_log if record.status >= 400]
    assert ("HEAD", f"/ann/one/resolve/main/{WEIGHTS}", 302) in hub.request_log


def test_snapshot_download(client: HfApi, write_adapter, tmp_path: Path) -> None:
    folder = write_adapter("ann/one", files={"sub/notes.txt": "n"})
    found = Path(client.snapshot_download("ann/one", cache_dir=tmp_path / "cache"))
    names = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}
    assert names == {"adapter_config.json", WEIGHTS, "sub/notes.txt"}
    assert (found / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_safetensors_metadata_uses_ranges(client: HfApi, write_adapter) -> None:
    write_adapter("ann/one")
    metadata = client.parse_safetensors_file_metadata("ann/one", WEIGHTS)
    assert metadata.tensors["w"].shape == [4000]


def test_missing_entries(web: httpx2.Client, client: HfApi, hub: HubServer, write_adapter, tmp_path: Path) -> None:
    write_adapter("ann/one")
    with pytest.raises(RemoteEntryNotFoundError):
        client.hf_hub_download("ann/one", "nope.txt", cache_dir=tmp_path)
    answer = web.head(f"{hub.endpoint}/ann/one/resolve/main/nope.txt")
    assert answer.headers["x-error-code"] == "EntryNotFound"
    assert len(answer.headers["x-repo-commit"]) == 40
    assert "retry-after" not in answer.headers


def test_an_old_commit_serves_what_is_still_there_and_nothing_else(
    tensor_file, client: HfApi, write_adapter, tmp_path: Path
) -> None:
    folder = write_adapter("ann/one")
    pinned = client.model_info("ann/one").sha
    (folder / WEIGHTS).write_bytes(tensor_file(fill=1))
    assert client.model_info("ann/one").sha != pinned
    with pytest.raises(RemoteEntryNotFoundError):
        client.hf_hub_download("ann/one", WEIGHTS, revision=pinned, cache_dir=tmp_path)
    kept = client.hf_hub_download("ann/one", "adapter_config.json", revision=pinned, cache_dir=tmp_path)
    assert Path(kept).read_bytes() == (folder / "adapter_config.json").read_bytes()
    new = client.hf_hub_download("ann/one", WEIGHTS, cache_dir=tmp_path)
    assert Path(new).read_bytes() == tensor_file(fill=1)


def test_a_signed_address_ends_with_the_content_it_was_made_for(
    tensor_file, web: httpx2.Client, hub: HubServer, write_adapter
) -> None:
    folder = write_adapter("ann/one")
    location = web.head(f"{hub.endpoint}/ann/one/resolve/main/{WEIGHTS}").headers["location"]
    unsigned = location.partition("?")[0]
    assert web.get(unsigned).status_code == 403
    assert web.get(location[:-4] + "0000").status_code == 403
    assert web.get(location.replace("Expires=", "Expires=9")).status_code == 403
    (folder / WEIGHTS).write_bytes(tensor_file(fill=2))
    assert web.get(location).status_code == 404


def test_hidden_files_and_outside_links_are_not_served(
    web: httpx2.Client, client: HfApi, hub: HubServer, write_adapter, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_text("secret")
    folder = write_adapter("ann/one", files={".gitattributes": "* -text", ".env": "s", ".git/config": "s"}, likes=1)
    write_adapter("ann/two", files={"other.txt": "other"})
    (folder / "abs.txt").symlink_to(secret)
    (folder / "rel.txt").symlink_to("../two/other.txt")
    (folder / "chain.txt").symlink_to("abs.txt")
    (folder / "dir").symlink_to(tmp_path / "folder")
    (folder / "loop").symlink_to("..")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "settings.json").symlink_to(".hub.json")
    (folder / "inside.json").symlink_to("adapter_config.json")
    os.mkfifo(folder / "pipe")
    names = [item.path for item in client.list_repo_tree("ann/one", recursive=True)]
    assert names == [".gitattributes", "adapter_config.json", WEIGHTS, "inside.json"]
    for name in (".env", ".git/config", ".hub.json", "abs.txt", "dir/x.txt", "rel.txt", "settings.json", "pipe"):
        assert web.get(f"{hub.endpoint}/ann/one/resolve/main/{name}").status_code == 404
    linked = web.get(f"{hub.endpoint}/ann/one/resolve/main/inside.json", follow_redirects=True)
    assert linked.content == (folder / "adapter_config.json").read_bytes()


STEP = st.sampled_from(["..", ".", "", "a.txt", "one", "ann", "%2e%2e", "..%2f", "%2F", "\\", "\x00", "~", "secret"])


def raw_get(hub: HubServer, path: str) -> tuple[int, str, str]:
    """Sends the path as it is; the usual client libraries tidy it up first."""
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers.get("Location", "")
    finally:
        connection.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=7), st.booleans(), st.integers(0, 2))
def test_no_path_leads_out(
    hub: HubServer, write_repo, tmp_path: Path, steps: list[str], encoded: bool, rounds: int
) -> None:
    """Whatever the path, the answer is one of the repo's own files or an error."""
    (tmp_path / "secret").write_text("secret")
    write_repo("ann/one", {"a.txt": "public"})
    path = "/".join(steps)
    for _ in range(rounds):
        path = quote(path, safe="" if encoded else "/")
    path = quote(path, safe="/%")
    for start in ("ann/one/resolve/main", "api/resolve-cache/models/ann/one/main", "api/models/ann/one/tree/main"):
        status, text, location = raw_get(hub, f"/{start}/{path}")
        if location:
            status, text, _ = raw_get(hub, location)
        assert status < 500
        assert "secret" not in text or status >= 400
        if status == 200 and "tree" not in start:
            assert text == "public"


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_repo_name_leads_out(registry: Path, write_repo, owner: str, name: str) -> None:
    write_repo("ann/one")
    (registry / "ann" / ".hidden").mkdir(exist_ok=True)
    found = HubFolder(registry).find(f"{owner}/{name}")
    assert found is None or found.id == "ann/one"


@pytest.mark.parametrize(
    "name", ["../registry/ann", "ann/..", "./ann", "ann/.hidden", "/ann", "ann/", "..", "", "ann/one/"]
)
def test_odd_repo_names(registry: Path, write_repo, name: str) -> None:
    write_repo("ann/one")
    (registry / "ann" / ".hidden").mkdir()
    assert HubFolder(registry).find(name) is None
