"""Starting, announcing, stopping."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from scanner.errors import UsageError
from scanner.hub.server import HubServer, running_hub, serve


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_announces_when_it_listens_and_stops_cleanly(
    web: httpx2.Client, registry: Path, write_adapter, number: int
) -> None:
    write_adapter("ann/one")
    code = (
        "from pathlib import Path; from scanner.hub.server import serve; "
        f"serve(Path({str(registry)!r}), 0, announce=lambda text: print(text, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line.startswith("HF_ENDPOINT=http://127.0.0.1:")
        endpoint = line.partition("=")[2]
        assert web.get(f"{endpoint}/api/models").json()[0]["id"] == "ann/one"
        assert web.get(f"{endpoint}/_hub/faults").status_code == 404
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()


def test_serve_stops_on_request_and_takes_a_faults_file(web: httpx2.Client, registry: Path, tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text('{"kind": "500"}')
    stop, ready, lines = threading.Event(), threading.Event(), []

    def announce(line: str) -> None:
        lines.append(line)
        ready.set()

    options = {"announce": announce, "faults": faults, "stop": stop}
    thread = threading.Thread(target=serve, args=(registry, 0), kwargs=options)
    thread.start()
    assert ready.wait(10)
    endpoint = lines[0].partition("=")[2]
    assert [web.get(f"{endpoint}/api/models").status_code for _ in range(2)] == [500, 200]
    assert web.get(f"{endpoint}/_hub/faults").json() == []
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(httpx2.ConnectError):
        web.get(f"{endpoint}/api/models")


def test_a_taken_port_or_a_missing_folder_is_said_in_one_sentence(registry: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^port {port} on 127\.0\.0\.1 is taken"):
            serve(registry, port, announce=print)
    with pytest.raises(UsageError, match="is not a folder"):
        serve(tmp_path / "none", 0, announce=print)
    with pytest.raises(UsageError, match="cannot listen"):
        serve(registry, 70_000, announce=print)
    with running_hub(registry) as hub, pytest.raises(UsageError, match="is taken"):
        serve(registry, int(hub.endpoint.rpartition(":")[2]), announce=print)


@pytest.mark.serial
def test_answers_are_not_held_back(web: httpx2.Client, hub: HubServer) -> None:
    # Nagle's algorithm against delayed acknowledgements would make it 40 ms each on a kept connection.
    times = []
    for _ in range(20):
        start = time.perf_counter()
        web.get(f"{hub.endpoint}/api/models")
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.035


def test_two_hubs_side_by_side_and_a_port_that_is_free_again(web: httpx2.Client, registry: Path) -> None:
    with running_hub(registry) as one, running_hub(registry) as two:
        assert len({one.endpoint, two.endpoint, one.cdn_endpoint, two.cdn_endpoint}) == 4
        port = int(one.endpoint.rpartition(":")[2])
        assert web.get(f"{one.endpoint}/api/models").json() == []
    with running_hub(registry, port=port) as again:
        assert again.endpoint == one.endpoint


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, scanner.hub.server; heavy = {'torch', 'prefect', 'duckdb', 'uvicorn', 'starlette', 'yaml'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip() == "[]"
