"""Starting and stopping: one server on two ports, the API and the CDN."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.errors import UsageError
from scanner.hub.server.faults import FaultBoard, load_faults
from scanner.hub.server.limits import DEFAULT_WINDOW_S, RateLimiter
from scanner.hub.server.script import Script, load_script

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from scanner.hub.server.gate import RequestRecord, TimedRecord

DEFAULT_PORT = 8899
_START_TIMEOUT_S = 20.0
_GRACE_S = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubServer:
    """A running hub."""

    endpoint: str
    """What `HF_ENDPOINT` is to be set to."""
    cdn_endpoint: str
    faults: FaultBoard
    request_log: list[RequestRecord]
    """(method, path, status) of every answer of both origins, in the order in which they began."""
    timed_log: list[TimedRecord]
    """The same with the moment at which each request came in, and its origin."""
    script: Script
    """What is to happen to the repos when a request comes in."""


def _print_now(text: str) -> None:
    print(text, flush=True)  # whoever waits for this line may be reading a pipe


def serve(
    directory: Path,
    port: int = DEFAULT_PORT,
    host: str = "127.0.0.1",
    announce: Callable[[str], None] = _print_now,
    *,
    cdn_port: int = 0,
    faults: Path | None = None,
    quota: int | None = None,
    window_s: float = DEFAULT_WINDOW_S,
    strict_errors: bool = False,
    stop: threading.Event | None = None,
) -> None:
    """Serves a folder until Ctrl-C or SIGTERM (or until `stop` is set).

    `announce` gets `HF_ENDPOINT=...` once the hub really listens. A faults file may hold a script of changes too, and
    opens the fault board to HTTP. `quota` requests per window are allowed, all addresses together.
    Raises UsageError when the folder does not exist, the port is taken, or the faults file is malformed.
    """
    stopped = stop or threading.Event()
    board, script = FaultBoard(load_faults(faults)) if faults is not None else FaultBoard(), Script()
    if faults is not None:
        load_script(faults, directory, script)
    limiter = RateLimiter(None if quota is None else {"all": quota}, window_s)
    with ExitStack() as stack:
        stack.enter_context(_signals_set(stopped))
        hub = stack.enter_context(
            _running(
                directory,
                port,
                host,
                cdn_port,
                board,
                limiter,
                script,
                has_fault_api=faults is not None,
                keeps_log=False,
                strict_errors=strict_errors,
            )
        )
        announce(f"HF_ENDPOINT={hub.endpoint}")
        stopped.wait()


@contextmanager
def running_hub(
    directory: Path,
    *,
    port: int = 0,
    quotas: Mapping[str, int] | None = None,
    window_s: float = DEFAULT_WINDOW_S,
    max_page: int = 1000,
    tokens: Mapping[str, str] | None = None,
    strict_errors: bool = False,
) -> Iterator[HubServer]:
    """A hub in the background, for tests and demos.

    Args:
        directory: of the repos.
        port: 0 takes a free one.
        quotas: requests per window, `{"api": 500, "resolvers": 3000}`, or `{"all": 50}` for everything together.
        window_s: length of a window.
        max_page: repos on one page of a listing.
        tokens: token -> role; any other token is refused. None accepts every token.
        strict_errors: see `access.Access`.
    """
    with _running(
        directory,
        port,
        "127.0.0.1",
        0,
        FaultBoard(),
        RateLimiter(quotas, window_s),
        Script(),
        has_fault_api=True,
        keeps_log=True,
        max_page=max_page,
        tokens=tokens,
        strict_errors=strict_errors,
    ) as hub:
        yield hub


@contextmanager
def _running(
    directory: Path,
    port: int,
    host: str,
    cdn_port: int,
    faults: FaultBoard,
    limiter: RateLimiter,
    script: Script,
    *,
    has_fault_api: bool,
    keeps_log: bool,
    max_page: int = 1000,
    tokens: Mapping[str, str] | None = None,
    strict_errors: bool = False,
) -> Iterator[HubServer]:
    # Here, not at the top: the command line imports this module before it knows that a server is wanted.
    from scanner.hub.server.access import Access
    from scanner.hub.server.app import api_app, cdn_app
    from scanner.hub.server.files import SignedUrls
    from scanner.hub.server.gate import Gate, RequestLog
    from scanner.hub.server.repos import HubFolder

    if not directory.is_dir():
        raise UsageError(f"{directory} is not a folder")
    with ExitStack() as stack:
        api_sockets = _listen(stack, host, port)
        cdn_sockets = _listen(stack, host, cdn_port, with_ipv6=host == "127.0.0.1")
        cdn_port = cdn_sockets[0].getsockname()[1]
        folder, urls = HubFolder(directory), SignedUrls(cdn_port)
        log = RequestLog()
        kept_log = log if keeps_log else None
        access = Access(tokens or {}, strict_errors)
        api = api_app(folder, urls, (faults, script) if has_fault_api else None, access, max_page)
        api_gate = Gate(api, "api", faults, script, limiter, kept_log)
        cdn_gate = Gate(cdn_app(folder, urls), "cdn", faults, script, None, kept_log)

        async def by_port(scope: Scope, receive: Receive, send: Send) -> None:
            is_cdn = scope["type"] == "http" and scope["server"][1] == cdn_port
            await (cdn_gate if is_cdn else api_gate)(scope, receive, send)

        stack.enter_context(_server_thread(by_port, [*api_sockets, *cdn_sockets]))
        # Hashing a folder of large models takes a while: begin before the first request asks for it.
        threading.Thread(target=folder.scan, name="hub-first-look", daemon=True).start()
        shown = "127.0.0.1" if host == "0.0.0.0" else host
        cdn_shown = "localhost" if shown == "127.0.0.1" else shown
        api_port = api_sockets[0].getsockname()[1]
        yield HubServer(
            f"http://{shown}:{api_port}",
            f"http://{cdn_shown}:{cdn_port}",
            faults,
            log.records,
            log.timed,
            script,
        )


def _listen(stack: ExitStack, host: str, port: int, *, with_ipv6: bool = False) -> list[socket.socket]:
    """A listening socket. With `with_ipv6` also one on ::1, where some systems look for `localhost` first."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = [stack.enter_context(_bound(family, host, port))]
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} on {host} is taken; choose another, or 0 for a free one") from None
        raise UsageError(f"cannot listen on {host} port {port}: {error}") from None
    if with_ipv6:
        try:
            found.append(stack.enter_context(_bound(socket.AF_INET6, "::1", found[0].getsockname()[1])))
        except OSError as error:
            _log.debug("no second listener on ::1: %s", error)
    return found


def _bound(family: int, host: str, port: int) -> socket.socket:
    # With the protocol spelled out asyncio turns Nagle's algorithm off; without, every answer takes 40 ms longer.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)  # at once: until then a second hub could bind the same port
    except BaseException:
        bound.close()
        raise
    return bound


@contextmanager
def _server_thread(app: ASGIApp, sockets: list[socket.socket]) -> Iterator[None]:
    import uvicorn

    from scanner.hub.server.connections import HangUpProtocol

    config = uvicorn.Config(
        app,
        http=HangUpProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=(sockets,), name="hub-server", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise UsageError("the local hub did not start")
            time.sleep(0.002)
        yield
    finally:
        server.should_exit = True
        thread.join(_GRACE_S + 5)


@contextmanager
def _signals_set(stopped: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set the event. Only the main thread may say so; elsewhere the caller stops the hub."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
