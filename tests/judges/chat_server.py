"""A server on the loopback interface that speaks the chat-completions protocol, and misbehaves as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What the server sends."""

    text: str = "yes"
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012
    reason: str = "stop"
    """The `finish_reason`."""
    body: str | None = None
    """The whole body, in place of a completion."""
    kind: str = "application/json"
    hangs: bool = False
    """Send nothing until the server ends."""


def error(status: int, message: str = "no", **headers: str) -> Answer:
    body = json.dumps({"error": {"message": message, "type": "t", "code": None}})
    return Answer(status=status, body=body, headers={name.replace("_", "-"): h for name, h in headers.items()})


class ChatServer:
    """Answers the n-th request with the n-th of `answers`, and all others with `reply(request)`."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.reply: Callable[[dict[str, Any]], Answer] = lambda request: Answer()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_open = 0
        self._open, self._lock, self._ended = 0, threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def asked(self) -> list[str]:
        """The last message of each request."""
        return [request["messages"][-1]["content"] for request in self.requests]

    def end(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _next(self, request: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self._open += 1
            self.most_open = max(self.most_open, self._open)
            planned = self.answers.pop(0) if self.answers else None
        return planned if planned is not None else self.reply(request)

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    server._send(self, error(404, "no such path"), request)
                    return
                try:
                    answer = server._next(request, {name.lower(): value for name, value in self.headers.items()})
                    if answer.hangs:
                        server._ended.wait()
                        self.close_connection = True
                        return
                finally:
                    with server._lock:
                        server._open -= 1
                server._send(self, answer, request)

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Answer, request: dict[str, Any]) -> None:
        words = sum(len(message["content"].split()) for message in request["messages"])
        used = len(answer.text.split())
        completion = {
            "id": "1", "object": "chat.completion", "created": 0, "model": request["model"],
            "choices": [{
                "index": 0, "finish_reason": answer.reason, "message": {"role": "assistant", "content": answer.text},
            }],
            "usage": {"prompt_tokens": words, "completion_tokens": used, "total_tokens": words + used},
        }  # fmt: skip
        content = (json.dumps(completion) if answer.body is None else answer.body).encode()
        handler.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, **answer.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        try:
            handler.wfile.write(content)
        except OSError:  # the client has given up
            handler.close_connection = True
