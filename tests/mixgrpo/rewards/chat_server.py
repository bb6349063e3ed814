"""A real HTTP server on loopback that answers chat completions as a test wants it to."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Request:
    """What a server was sent."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float
    """Seconds of time.monotonic()."""

    @property
    def text(self) -> str:
        """The question."""
        texts = [p["text"] for p in self.body["messages"][0]["content"] if p["type"] == "text"]
        return str(texts[0])

    @property
    def pixels(self) -> np.ndarray:
        """The image [H, W, 3] that came as a PNG."""
        parts = self.body["messages"][0]["content"]
        (url,) = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
        head, data = url.split(",", 1)
        assert head == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.array(picture)


@dataclass
class Reply:
    text: str = ""
    """What the model says, wrapped as a completion; or the body as it is, where `raw`."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    """Seconds until it is sent."""
    raw: bool = False
    body: bytes | None = None
    """Sent in place of the text."""
    drips: bool = False
    """One byte at a time, with no end."""


Behaviour = Callable[[Request], Reply]


@dataclass
class Chat:
    """A running server, what it was sent, and how many requests were under way at most."""

    url: str
    requests: list[Request] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def serving(behave: Behaviour) -> Iterator[Chat]:
    """A server on a free port that replies to every request as `behave` says."""
    lock, under_way = threading.Lock(), 0
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            nonlocal under_way
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(self.path, dict(self.headers), body, time.monotonic())
            with lock:
                chat.requests.append(request)
                under_way += 1
                chat.most_at_once = max(chat.most_at_once, under_way)
            reply = behave(request)
            stop.wait(reply.after)
            with lock:
                under_way -= 1
            text = reply.text
            if not reply.raw:
                message = {"role": "assistant", "content": text}
                text = json.dumps({"choices": [{"index": 0, "message": message}]})
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                content = text.encode() if reply.body is None else reply.body
                length = 1 << 20 if reply.drips else len(content)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                while reply.drips and not stop.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                self.wfile.write(content)
            except OSError:  # the client has gone
                self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    chat = Chat(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
