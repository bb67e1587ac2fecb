"""A web address that remembers what was posted to it: where notifications of the tests go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Sink:
    """What arrived, oldest first, and where it is taken."""

    address: str = ""
    bodies: list[str] = field(default_factory=list)


@contextmanager
def listening(port: int) -> Iterator[Sink]:
    """Listen on 127.0.0.1:port until the block ends."""
    sink = Sink(f"http://127.0.0.1:{port}/notify")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sink.bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
