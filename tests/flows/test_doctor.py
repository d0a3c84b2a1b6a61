"""`lorascope doctor` as another program sees it, and the Prefect server that it looks for."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.doctor import check_server, judge_server
from scanner.doctor import HUB_NAMES, VERSION_NAMES, Outcome
from scanner.hub.server import running_hub

NAMES = [*HUB_NAMES, "store", "prefect server", "device", "temporary folder", "hub cache", *VERSION_NAMES]
TOKEN = "hf_goodgoodgood"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty registry."""
    (tmp_path / "registry").mkdir()
    return tmp_path / "registry"


def test_json_and_table(lorascope: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    with running_hub(folder, tokens={TOKEN: "write"}, quotas={"all": 50}) as server:
        environment = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
        done = lorascope("doctor", "--store", str(tmp_path / "store"), "--format", "json", **environment)
        document = json.loads(done.stdout)
        assert done.stderr == ""
        assert [check["name"] for check in document["checks"]] == NAMES
        assert all(set(check) == {"name", "outcome", "message", "advice"} for check in document["checks"])
        found = {check["name"]: check["outcome"] for check in document["checks"]}
        assert (found["hub"], found["store"], found["prefect server"]) == ("ok", "ok", "ok"), document
        assert found["token"] == "warning"
        assert (document["outcome"] == "error") == ("error" in found.values()) == (done.returncode == 2)
        assert TOKEN not in done.stdout

        environment["HF_TOKEN"] = "hf_notthatone"
        (tmp_path / "file").write_text("")
        bad = lorascope("doctor", "--store", str(tmp_path / "file" / "store"), **environment)
        assert bad.returncode == 2 and bad.stderr == ""
        lines = {line.split("  ")[0]: line for line in bad.stdout.splitlines() if not line.startswith(" ")}
        assert "error" in lines["token"] and "error" in lines["store"] and " ok " in lines["hub"]
        assert "hf_notthatone" not in bad.stdout and "→" in bad.stdout


@contextmanager
def answering(answers: dict[str, Any]) -> Iterator[str]:
    """A server that gives each path's JSON, and 404 for the rest."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/api")
            body = json.dumps(answers.get(path)).encode()
            self.send_response(200 if path in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def environment(tmp_path: Path, url: str) -> dict[str, str]:
    return {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": url}


def test_servers_that_do_not_answer_as_one(tmp_path: Path) -> None:
    with answering({}) as url:
        check = check_server(environment(tmp_path, url))
    assert check.outcome is Outcome.ERROR and url in check.message and "404" in check.message, check
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        check = check_server(environment(tmp_path, f"http://127.0.0.1:{free.getsockname()[1]}/api"))
    assert check.outcome is Outcome.ERROR and "does not answer" in check.message and check.advice, check


def test_an_older_server(tmp_path: Path) -> None:
    with answering({"/health": True, "/admin/version": "3.1.0"}) as url:
        check = check_server(environment(tmp_path, url))
    assert check.outcome is Outcome.WARNING and "3.1.0" in check.message and check.advice, check


@pytest.mark.usefixtures("prefect_server")
def test_a_real_server(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    assert url
    check = check_server(environment(tmp_path, url))
    assert check.outcome is Outcome.OK and url in check.message, check


def test_versions_of_client_and_server() -> None:
    facts = {"client": "3.8.8", "url": "http://x/api", "silent": None}
    outcomes = {
        server: judge_server({**facts, "server": server}).outcome for server in ("3.8.8", "3.8.2", "3.9.0", "2.20")
    }
    assert list(outcomes.values()) == [Outcome.OK, Outcome.OK, Outcome.WARNING, Outcome.ERROR]
    assert judge_server({**facts, "server": None}).outcome is Outcome.OK


def test_a_prefect_that_cannot_be_loaded_in_time(tmp_path: Path) -> None:
    check = check_server(environment(tmp_path, ""), limit_s=0.01)
    assert check.outcome is Outcome.ERROR and "within 0.01 s" in check.message and check.advice


def test_a_store_that_hangs_does_not_hang_the_command(
    lorascope: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        done = lorascope(
            "doctor", "--store", "s3://scans/store", "--format", "json",
            HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hf"), AWS_REGION="us-east-1",
            AWS_ACCESS_KEY_ID="some-key-id", AWS_SECRET_ACCESS_KEY="some-secret",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
        )  # fmt: skip
    assert done.returncode == 2
    found = {check["name"]: check["outcome"] for check in json.loads(done.stdout)["checks"]}
    assert list(found) == NAMES and found["store"] == "error"
    assert "some-key-id" not in done.stdout and "some-secret" not in done.stdout


def test_a_check_that_never_ends_does_not_hold_the_process(tmp_path: Path) -> None:
    # An executor is joined when the interpreter ends: an ordinary exit would wait for the sleeper.
    code = (
        "import time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import flows.doctor as doctor\n"
        "from scanner.doctor import Group\n"
        "def hang(): return ThreadPoolExecutor().submit(time.sleep, 600).result()\n"
        "doctor.doctor_groups = lambda *_: [Group(('stuck',), 0.3, hang)]\n"
        "raise SystemExit(doctor.run_doctor(store='x', output='json'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["checks"][0]["message"] == "no answer within 0.3 s"
