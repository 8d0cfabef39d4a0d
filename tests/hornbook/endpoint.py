"""An OpenAI-compatible endpoint on the loopback for tests; it behaves as badly as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hornbook.engines.interface import EngineSettings
from hornbook.engines.openai_engine import OpenAIEngine


class Endpoint:
    """The server. `behaviour` is called with the number of a request, from 1, and the handler that must answer it."""

    def __init__(self) -> None:
        self.behaviour: Callable[[int, BaseHTTPRequestHandler], None] = lambda number, handler: well(handler)
        self.seen: list[tuple[float, dict[str, Any], str]] = []
        self.counting = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.counting:
                    endpoint.seen.append((time.monotonic(), body, self.headers.get("Authorization", "")))
                    number = len(endpoint.seen)
                endpoint.behaviour(number, self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def asked(self, number: int) -> str:
        """Return the prompt of a request."""
        return self.seen[number - 1][1]["messages"][0]["content"]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def engine(self, **settings: Any) -> OpenAIEngine:
        return OpenAIEngine(EngineSettings(kind="openai", model="m", base_url=self.url, **settings))


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def well(handler: BaseHTTPRequestHandler, text: str | None = "Hello.", **choice: Any) -> None:
    answer = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    send(handler, 200, json.dumps({"choices": [answer], "usage": usage}).encode())
