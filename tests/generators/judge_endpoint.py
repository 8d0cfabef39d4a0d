"""A judge behind an OpenAI-compatible endpoint that enforces no schema: it answers what a test's function says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeEndpoint:
    """`answer` turns the last message of a request into a status, the text and the finish reason of the reply."""

    def __init__(self, answer: Callable[[str], tuple[int, str, str]]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(request)
                status, text, reason = endpoint.answer(request["messages"][-1]["content"])
                choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
                usage = {"prompt_tokens": 7, "completion_tokens": 3}
                body = json.dumps({"choices": [choice], "usage": usage}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def engine(self) -> dict[str, Any]:
        """Engine settings that ask here."""
        return {
            "kind": "openai",
            "model": "judge",
            "base_url": f"http://127.0.0.1:{self.server.server_port}/v1",
            "outage_seconds": 0,
        }

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
