"""Names of base models followed to their root: the real client against the local hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from scanner.errors import HubUnreachableError
from scanner.hub.client import HubClient
from scanner.hub.names import cached_id, last_segment, related_bases, tagged_bases
from scanner.hub.resolve import MAX_DEPTH, MAX_FAILURES, Answer, BaseResolver, parse_answer, walk
from scanner.hub.server import Fault, HubServer
from scanner.model import UNRESOLVED, BaseResolution
from scanner.settings import Settings

AddBase = Callable[..., Path]


@pytest.fixture
def add_base(registry: Path) -> AddBase:
    """`add_base("owner/name", copy_of="owner/root", relation="quantized", renamed_from=[...])` writes a base model."""

    def add(
        repo_id: str,
        *,
        copy_of: str | list[str] | None = None,
        relation: str | None = "quantized",
        config: dict | None = None,
        **settings: object,
    ) -> Path:
        folder = registry / repo_id
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, **(config or {})}))
        (folder / ".hub.json").write_text(json.dumps(settings))
        if copy_of is not None:
            card = {"base_model": copy_of, **({"base_model_relation": relation} if relation else {})}
            (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
        return folder

    return add


@pytest.fixture
def resolver(served: HubServer, quick: Settings, tmp_path: Path) -> BaseResolver:
    return _resolver(served, quick, tmp_path)


def _resolver(served: HubServer, settings: Settings, tmp_path: Path, limit: int = 200) -> BaseResolver:
    return BaseResolver(tmp_path / "names", lambda: HubClient(settings, served.endpoint), limit)


def _kinds(found: BaseResolution) -> list[str]:
    return [step.kind for step in found.steps]


def _asked(served: HubServer) -> list[str]:
    return [path for _, path, _ in served.request_log if path.startswith("/api/models/")]


def test_a_root_is_itself(add_base: AddBase, resolver: BaseResolver, served: HubServer) -> None:
    add_base("acme/base")
    found = resolver.resolve("acme/base")
    assert (found.root, _kinds(found)) == ("acme/base", ["known"])
    assert len(found.commit_sha or "") == 40 and found.steps[0].detail == found.commit_sha


def test_each_name_is_asked_once_in_a_run(
    add_base: AddBase, resolver: BaseResolver, served: HubServer, quick: Settings, tmp_path: Path
) -> None:
    add_base("acme/base")
    first = resolver.resolve("acme/base"), resolver.resolve("acme/nothing")
    another = _resolver(served, quick, tmp_path)  # another thread's or process's, on the same folder
    assert (another.resolve("acme/base"), another.resolve("acme/nothing")) == first
    assert another.resolve("ACME/Base").root == "acme/base"  # the Hub does not tell letters' case apart either
    assert len(_asked(served)) == 2


@pytest.mark.parametrize("asked", ["old-base", "acme/former-base", "Acme/BASE"])
def test_legacy_renamed_and_miswritten_names_are_redirected(
    add_base: AddBase, resolver: BaseResolver, asked: str
) -> None:
    add_base("acme/base", renamed_from=["old-base", "acme/former-base"])
    found = resolver.resolve(asked)
    assert (found.root, _kinds(found)) == ("acme/base", ["redirect", "known"])
    assert (found.steps[0].value, found.steps[0].detail) == ("acme/base", asked)


def test_copies_of_copies_lead_to_the_root(add_base: AddBase, resolver: BaseResolver) -> None:
    add_base("meta/llama", renamed_from=["meta/llama-old"])
    add_base("sloth/llama-4bit", copy_of="meta/llama-old")
    add_base("mirror/llama-4bit-mlx", copy_of="sloth/llama-4bit")
    found = resolver.resolve("mirror/llama-4bit-mlx")
    assert found.root == "meta/llama"
    assert [step.value for step in found.steps if step.kind == "quantized"] == ["sloth/llama-4bit", "meta/llama"]
    assert found.commit_sha == resolver.resolve("meta/llama").commit_sha


@pytest.mark.parametrize("relation", ["finetune", "merge", "adapter", None])
def test_what_is_no_copy_is_its_own_base(add_base: AddBase, resolver: BaseResolver, relation: str | None) -> None:
    add_base("meta/llama")
    add_base("ann/llama-tuned", copy_of="meta/llama", relation=relation)
    assert resolver.resolve("ann/llama-tuned").root == "ann/llama-tuned"


def test_a_gated_base_is_known(add_base: AddBase, resolver: BaseResolver, quick: Settings) -> None:
    add_base("meta/llama", gated="manual")
    found = resolver.resolve("meta/llama")
    assert found.root == "meta/llama" and found.commit_sha
    assert resolver.file(found.root, found.commit_sha, "config.json", 10**6) is None  # its files are not


def test_unknown_names(resolver: BaseResolver, served: HubServer) -> None:
    private = resolver.resolve("acme/private-base")
    assert (private.root, private.commit_sha, _kinds(private)) == ("acme/private-base", None, ["unknown_to_hub"])
    folder = resolver.resolve("my-output")
    assert (folder.root, _kinds(folder)) == (UNRESOLVED, ["unknown_to_hub"])
    before = len(_asked(served))
    for name in ("/home/ann/base", "./base", "a/b/c", "", "C:\\models\\base", "a--b"):
        found = resolver.resolve(name)
        assert (found.root, _kinds(found)) == (UNRESOLVED, ["not_a_hub_id"])
    assert len(_asked(served)) == before


def test_a_chain_that_proves_no_root_ends_at_its_beginning(add_base: AddBase, resolver: BaseResolver) -> None:
    add_base("a/self", copy_of="a/self")
    assert (resolver.resolve("a/self").root, _kinds(resolver.resolve("a/self"))[-1]) == ("a/self", "loop")
    add_base("a/one", copy_of="a/two")
    add_base("a/two", copy_of="a/one")
    assert (resolver.resolve("a/one").root, resolver.resolve("a/two").root) == ("a/one", "a/two")
    for number in range(MAX_DEPTH + 2):
        add_base(f"deep/m{number}", copy_of=f"deep/m{number + 1}")
    deep = resolver.resolve("deep/m0")
    assert (deep.root, _kinds(deep)[-1]) == ("deep/m0", "too_deep")
    add_base("a/orphan", copy_of="gone/root")
    orphan = resolver.resolve("a/orphan")
    assert (orphan.root, _kinds(orphan)) == ("a/orphan", ["known", "quantized", "unknown_to_hub"])


def test_a_copy_of_many_is_a_copy_of_none(add_base: AddBase, resolver: BaseResolver, served: HubServer) -> None:
    add_base("evil/many", copy_of=[f"a/m{number}" for number in range(3_000)])
    found = resolver.resolve("evil/many")
    assert (found.root, _kinds(found)) == ("evil/many", ["known", "ambiguous"])
    assert len(json.dumps([step.detail for step in found.steps])) < 1_000
    assert len(_asked(served)) == 1


def test_a_failing_hub_gives_no_wrong_base_and_is_left_alone(
    add_base: AddBase, served: HubServer, quick: Settings, tmp_path: Path
) -> None:
    add_base("meta/llama")
    add_base("sloth/llama-4bit", copy_of="meta/llama")
    served.faults.add(Fault("500", match="/api/models/meta/llama", times=None))
    resolver = _resolver(served, quick, tmp_path)
    copy = resolver.resolve("sloth/llama-4bit")
    assert (copy.root, _kinds(copy)) == ("sloth/llama-4bit", ["known", "quantized", "unreachable"])
    assert not copy.is_final and resolver.resolved() == []  # nothing that a later run would believe
    served.faults.clear()
    served.faults.add(Fault("500", match="/api/models/", times=None))
    names = [f"a/m{number}" for number in range(6)]
    found = [resolver.resolve(name) for name in names]
    assert [one.root for one in found] == names
    assert [_kinds(one)[-1] for one in found] == ["unreachable"] * (MAX_FAILURES - 1) + ["not_looked_up"] * 4
    served.faults.clear()
    fresh = BaseResolver(tmp_path / "next-run", lambda: HubClient(quick, served.endpoint), 9)
    assert fresh.resolve("sloth/llama-4bit").root == "meta/llama"


def test_a_hub_that_is_gone_ends_the_run(quick: Settings, tmp_path: Path) -> None:
    resolver = BaseResolver(tmp_path / "names", lambda: HubClient(quick, "http://127.0.0.1:9"), 9)
    with pytest.raises(HubUnreachableError):
        resolver.resolve("acme/base")


def test_requests_are_bounded(add_base: AddBase, served: HubServer, quick: Settings, tmp_path: Path) -> None:
    for number in range(5):
        add_base(f"acme/m{number}")
    resolver = _resolver(served, quick, tmp_path, limit=2)
    found = [resolver.resolve(f"acme/m{number}") for number in range(5)]
    assert [_kinds(one)[-1] for one in found] == ["known"] * 2 + ["not_looked_up"] * 3
    assert [one.root for one in found] == [f"acme/m{number}" for number in range(5)]
    assert len(_asked(served)) == 2


def test_offline_asks_nothing(tmp_path: Path) -> None:
    found = BaseResolver(tmp_path / "names", None, 9).resolve("acme/base")
    assert (found.root, found.commit_sha, _kinds(found)) == ("acme/base", None, ["not_looked_up"])


def test_what_earlier_runs_found_asks_nothing(
    add_base: AddBase, resolver: BaseResolver, served: HubServer, tmp_path: Path, quick: Settings
) -> None:
    add_base("acme/base", renamed_from=["old-base"])
    found = resolver.resolve("old-base")
    later = BaseResolver(tmp_path / "later", lambda: HubClient(quick, served.endpoint), 9)
    later.remember([found])
    before = len(_asked(served))
    assert later.resolve("old-base") == found
    assert len(_asked(served)) == before
    assert later.resolved() == []  # only what this run has asked itself is written down again
    assert later.roots_named("/home/ann/Base") == later.roots_named("x\\OLD-BASE\\") == {"acme/base": found.commit_sha}
    assert later.roots_named("/") == {}


def test_config_is_fetched_once(
    add_base: AddBase, resolver: BaseResolver, served: HubServer, quick: Settings, tmp_path: Path
) -> None:
    add_base("acme/base")
    sha = str(resolver.resolve("acme/base").commit_sha)
    served.request_log.clear()
    path = resolver.file("acme/base", sha, "config.json", 10**6)
    assert path is not None and json.loads(path.read_bytes())["hidden_size"] == 64
    assert len(served.request_log) == 1
    assert _resolver(served, quick, tmp_path).file("acme/base", sha, "config.json", 10**6) == path
    assert len(served.request_log) == 1
    add_base("acme/large", config={"padding": "x" * 5_000})
    large = str(resolver.resolve("acme/large").commit_sha)
    assert resolver.file("acme/large", large, "config.json", 1_000) is None


def _info(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(**{"id": "a/b", "sha": "0" * 40, "tags": None, "config": None, **fields})


def _hostile() -> Iterator[object]:
    yield from (None, 5, "a/b", [], ["a/b"], {"models": 5}, {"models": {"id": "a/b"}}, {"models": "a/b"})
    yield {"relation": "quantized", "models": [5, None, {}, {"id": 5}, {"id": "/etc/passwd"}, {"id": "a/b/c"}]}
    yield {"relation": ["quantized"], "models": [{"id": "meta/llama"}]}
    yield {"relation": "quantized", "models": [{"id": "../x"}] * 10_000 + [{"id": "meta/llama"}]}


@pytest.mark.parametrize("value", tuple(_hostile()), ids=lambda value: repr(value)[:40])
def test_hostile_metadata_names_no_copy(value: object) -> None:
    assert parse_answer(_info(base_models=value)).copy_of == ()


@pytest.mark.parametrize("field", ["tags", "config", "sha"])
@pytest.mark.parametrize("value", [5, "text", {"quantization_config": {"quant_method": 5}}, [None, 5], [["a"]]])
def test_fields_of_a_wrong_type_count_as_absent(field: str, value: object) -> None:
    answer = parse_answer(_info(**{field: value}))
    assert (answer.id, answer.copy_of, answer.method, answer.refusal) == ("a/b", (), "", "")


def test_an_answer_under_an_impossible_name_is_none() -> None:
    assert parse_answer(_info(id="../../etc")).refusal == "refused"


def test_tags_stand_in_for_the_field() -> None:
    tags = ["base_model:meta/llama", "base_model:quantized:meta/llama"]
    assert parse_answer(_info(tags=tags)).copy_of == ("meta/llama",)
    assert parse_answer(_info(tags=tags[:1])).copy_of == ()


def test_names() -> None:
    tags = ["lora", "base_model:x/one", "base_model:adapter:x/two", "base_model:adapter:", "base_model:adapter:/a", 5]
    assert tagged_bases(tags) == {"": "x/one", "adapter": "x/two"}
    assert related_bases({"relation": "adapter", "models": [{"id": "a/b"}, {"id": "a/b"}]}) == ("adapter", ("a/b",))
    assert [last_segment(path) for path in ("/a/B/", "C:\\x\\Y", "./models/base", "/", "..")] == [
        "b", "y", "base", "", "",
    ]  # fmt: skip
    assert cached_id("/home/someone/.cache/huggingface/hub/models--meta--llama/snapshots/abc") == "meta/llama"
    assert cached_id("/models--a--b--c/x") is None and cached_id("/models--/x") is None and cached_id("/x") is None


def test_a_chain_of_redirects_into_itself_ends() -> None:
    """Each name is answered under another one that is a copy of the first."""
    asked: list[str] = []

    def ask(name: str) -> Answer:
        asked.append(name)
        return Answer(f"x/m{len(asked)}", "0" * 40, ("x/m0",))

    found = walk("x/m0", ask)
    assert found.root == "x/m1" and len(asked) == MAX_DEPTH + 1
