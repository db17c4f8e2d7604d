"""Serves the page: at one address, to this machine alone unless told otherwise."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from u2pl.app.desk import Desk
from u2pl.app.page import STYLE, Page
from u2pl.app.uploads import MOST_PIXELS
from u2pl.errors import UserError, import_extra

FIRST_PORT, LAST_PORT = 7860, 7959
"""Where no port is named, the first free one of these is taken."""
_MOST_UPLOAD = 8 * MOST_PIXELS  # bytes: 16 bits of four channels, not compressed
# Whatever a name could smuggle in, or Gradio may want to fetch one day: the browser asks no other
# machine. Gradio's own scripts need 'unsafe-inline' and 'unsafe-eval'.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)

Message = MutableMapping[str, Any]


def serve(
    desk: Desk,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Show the page until SIGINT or SIGTERM comes.

    Args:
        desk: what answers.
        host: the IPv4 address, or the name of one, to listen at.
        port: None takes the first free one from 7860 on.
        browser: whether to open the page in the system's browser.
        on_ready: called with the page's address once it can be opened.

    Raises:
        UserError: where Gradio is not installed, or the address cannot be listened at.
    """
    uvicorn = imported("uvicorn")
    with listening(host, port) as listener, workplace() as folder:
        app = application(Page(desk, folder), host=host)
        shown = "127.0.0.1" if host in ("0.0.0.0", "") else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        on_ready(address)
        if browser:  # a browser of the terminal would not return
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        # a page keeps streams open, which would be waited for, and are cut off with a traceback
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
        with ended_by_signals():
            server.run(sockets=[listener])


def imported(name: str) -> Any:
    """A module out of the extra.

    Raises:
        UserError: where it is not installed.
    """
    return import_extra(
        name, "The page needs Gradio, which is not installed; do pip install 'u2pl[app]'."
    )


@contextlib.contextmanager
def listening(host: str, port: int | None) -> Iterator[socket.socket]:
    """A socket that listens: whoever connects before the page is ready, waits.

    Raises:
        UserError: where the address is none of this machine's, or the port is taken.
    """
    ports = range(FIRST_PORT, LAST_PORT + 1) if port is None else [port]
    for number in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            if os.name == "posix":  # a port whose last user has just left
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, number))
                listener.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE and number != ports[-1]:
                    continue
                raise UserError(_refusal(host, port, error)) from None
            except UnicodeError:  # no name of a machine can be spelled like this
                raise UserError(_refusal(host, port, OSError("no such name"))) from None
            yield listener
            return


def _refusal(host: str, port: int | None, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        taken = f"The ports {FIRST_PORT} to {LAST_PORT} are" if port is None else f"Port {port} is"
        return f"{taken} taken by another program; name a free one with --port."
    if error.errno == errno.EACCES:
        return f"Port {port} may not be listened at here; name one above 1023 with --port."
    return (
        f"Cannot listen at {host}: {error.strerror or error}; expected an IPv4 address of this "
        "machine, such as 127.0.0.1, or 0.0.0.0 for all of them."
    )


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder for uploads and pictures that is gone when the page is."""
    with tempfile.TemporaryDirectory(prefix="u2pl-app-", ignore_cleanup_errors=True) as name:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = name  # the one way to tell Gradio
        try:
            yield Path(name)
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end what is done here, and nothing beyond."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # the server shuts down, then raises the signal again
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_local(host: str) -> bool:
    """Whether nobody but this machine reaches what listens at an address.

    >>> is_local("localhost"), is_local("127.0.0.1"), is_local("0.0.0.0"), is_local("")
    (True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may mean any address
        return False


def application(page: Page, *, host: str) -> Any:
    """The page as an ASGI application, with everything switched off that it does not need.

    Args:
        page: what to show.
        host: the address that is listened at. Where only this machine reaches it, a request that
            comes under another name is refused: a stranger's web site can make its name point
            here, and would read what the page shows.
    """
    gradio, fastapi = imported("gradio"), imported("fastapi")
    quiet = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = fastapi.FastAPI(**quiet)
    gradio.mount_gradio_app(
        app,
        page.build(),
        path="/",
        app_kwargs=quiet,
        allowed_paths=[],
        show_error=False,
        max_file_size=_MOST_UPLOAD,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        css=STYLE,
        theme=page.theme(),
    )
    app.add_middleware(Policy)
    if is_local(host):
        hosts = imported("starlette.middleware.trustedhost")
        names = [host, "localhost", "127.0.0.1"]
        app.add_middleware(hosts.TrustedHostMiddleware, allowed_hosts=names)
    return app


class Policy:
    """Sends the browser rules along with each answer.

    Args:
        app: the ASGI application that answers.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer one request."""

        async def send_with_rules(message: Message) -> None:
            if message["type"] == "http.response.start":
                rules = {
                    b"content-security-policy": _POLICY.encode(),
                    b"referrer-policy": b"no-referrer",
                    b"x-content-type-options": b"nosniff",
                }
                message["headers"] = [*message.get("headers", []), *rules.items()]
            await send(message)

        await self.app(scope, receive, send_with_rules)
