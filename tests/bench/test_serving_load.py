"""bench/serving_load.py: a client that fails ends the measurement."""

from __future__ import annotations

import importlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.helpers import SOURCE


class Service(BaseHTTPRequestHandler):
    """Answers every request, or closes each connection after the first one's."""

    protocol_version = "HTTP/1.1"
    breaks = False
    answered = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if type(self).breaks and type(self).answered:
            self.close_connection = True
            return
        type(self).answered += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("breaks", [False, True])
def test_a_client_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, breaks: bool) -> None:
    monkeypatch.syspath_prepend(str(SOURCE / "bench"))
    module = importlib.import_module("serving_load")
    service = type("OfThisTest", (Service,), {"breaks": breaks})
    with ThreadingHTTPServer(("127.0.0.1", 0), service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            if breaks:
                with pytest.raises(RuntimeError, match="of 2 clients failed"):
                    module.load(server.server_port, [b"an image"], clients=2, seconds=0.3)
            else:
                row = module.load(server.server_port, [b"an image"], clients=2, seconds=0.3)
                assert row["answers"] > 0
                assert row["refused"] == 0
        finally:
            server.shutdown()
            thread.join()
