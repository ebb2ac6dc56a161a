"""The server of the page, on this machine alone, and the desk where its work is done."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import queue
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, TypeVar

from ...base.extras import require

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # what a browser may call it; another name is another site's, led here (DNS rebinding)
LAST_ANSWERS = 1  # second, for answers that are on their way when the server ends
END_SECONDS = 5.0  # for the server's thread to end
# a page that asks no other host for anything, whatever the library that builds it has in mind
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'"
)

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
Result = TypeVar("Result")


class Desk:
    """Work of the server's thread, done one after another in the thread that calls :meth:`work`.

    That is the main thread, where Ctrl-C ends a computation as it does in every other command.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[concurrent.futures.Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._ended = False

    async def done(self, job: Callable[[], Result]) -> Result:
        """What ``job`` gives or raises, once it was its turn. For the server's thread.

        Raises ConnectionAbortedError where :meth:`work` ends before that.
        """
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        self._jobs.put((future, job))
        if self._ended:
            self._refuse()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let :meth:`work` return after what is waiting now."""
        self._jobs.put(None)

    def work(self) -> None:
        """Do the work as it comes, until the desk is closed or Ctrl-C; what is left then is refused."""
        try:
            while (taken := self._jobs.get()) is not None:
                future, job = taken
                if not future.set_running_or_notify_cancel():
                    continue  # who asked has left
                try:
                    future.set_result(job())
                except Exception as error:
                    future.set_exception(error)
                finally:
                    if not future.done():
                        future.set_exception(ended())
        finally:
            self._ended = True
            self._refuse()

    def _refuse(self) -> None:
        """Answer all that waits: the server can't end in peace before."""
        with contextlib.suppress(queue.Empty):
            while True:
                taken = self._jobs.get_nowait()
                if taken is not None and taken[0].set_running_or_notify_cancel():
                    taken[0].set_exception(ended())


def ended() -> ConnectionAbortedError:
    """What those get whose work is not done any more."""
    return ConnectionAbortedError("pxfast app has ended")


def bound_socket(port: int) -> socket.socket:
    """A socket on a port of 127.0.0.1; 0 takes any that is free. OSError says which port can't be had, and why."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a run that has just ended does not block the next
    try:
        found.bind((HOST, port))
        found.listen()  # two that are bound at once are told apart here
    except OSError as error:
        found.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"can't be had: {error.strerror}"
        raise OSError(
            f"port {port} of {HOST} {reason}; choose another with --port, or 0 for any that is free"
        ) from None
    return found


async def refused(send: Send, status: int, why: bytes) -> None:
    """Answer a request with a status and a line of text."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": why})


def from_this_page(headers: dict[bytes, str]) -> bool:
    """Whether a request comes from the page itself, or from no page. Browsers say so; any page may send one."""
    origin = headers.get(b"origin")
    own = origin is None or origin.partition("://")[2] == headers.get(b"host")
    return own and headers.get(b"sec-fetch-site", "none") in ("same-origin", "none")


def guarded(application: Application) -> Application:
    """The application, with ``POLICY`` on every answer, for requests to this machine by its own names alone."""

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await application(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if host.rpartition(":")[0] not in NAMES and host not in NAMES:
            return await refused(send, 421, b"this page is served to its own machine alone\n")
        if scope["method"] not in ("GET", "HEAD") and not from_this_page(headers):
            return await refused(send, 403, b"this request comes from another page\n")

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                further = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message.get("headers", []), *further]}
            await send(message)

        return await application(scope, receive, send_guarded)

    return answer


def serve(application: Application, on: socket.socket, desk: Desk, announce: Callable[[], None]) -> None:
    """Serve until Ctrl-C, whose KeyboardInterrupt passes on; ``announce`` is called once pages can be had.

    The server runs in a thread of its own, the desk's work in this one. RuntimeError when the server ends by itself.
    """
    uvicorn = require("uvicorn", "app")
    config = uvicorn.Config(
        guarded(application),
        log_config=None,
        log_level="error",
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=LAST_ANSWERS,
    )
    server = uvicorn.Server(config)

    def run() -> None:
        with contextlib.suppress(SystemExit):  # how uvicorn says that it could not start
            server.run(sockets=[on])
        desk.close()

    thread = threading.Thread(target=run, name="pxfast app", daemon=True)
    thread.start()
    try:
        announce()  # the socket listens already: a browser that is early waits
        desk.work()
        raise RuntimeError("the page's server has stopped")
    finally:
        logging.getLogger("uvicorn.error").disabled = True  # to cut off a page's connections is no error now
        server.should_exit = True
        thread.join(END_SECONDS)
