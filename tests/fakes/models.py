"""A model endpoint for whole coding agents: Anthropic's messages, OpenAI's responses and chat completions, by a script.

`Run` becomes a call of whatever shell tool the agent offers, so one script drives them all. Requests without a shell tool
(titles, warm-ups) are answered and take no turn.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from infra.llm import Frozen

PROMPT_TOKENS, CACHED_TOKENS, WRITTEN_TOKENS = 1200, 200, 30
"""Every answer says that it used these; the cached ones are part of the prompt's."""


class Say(Frozen):
    """The agent's last word: text without a call."""

    text: str


class Run(Frozen):
    """A call of the agent's shell tool."""

    command: str


class Refuse(Frozen):
    """An HTTP error with its JSON body."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = {}


class Hang(Frozen):
    """No answer for that long."""

    seconds: float


Turn = Say | Run | Refuse | Hang


class AgentEndpoint:
    """The server. The last turn repeats. `keys` are the credentials that came, `bodies` the requests, oldest first."""

    def __init__(self, *turns: Turn, models: Refuse | None = None) -> None:
        """`models` is what the list of models answers; None: a list."""
        self.turns: Sequence[Turn] = turns
        self.models = models
        self.keys: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.taken = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.endpoint = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Base URL without a path; OpenAI's protocols are below `/v1`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> AgentEndpoint:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_turn(self) -> Turn:
        with self._lock:
            self.taken += 1
            return self.turns[min(self.taken, len(self.turns)) - 1]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    endpoint: AgentEndpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A killed agent tears its connections down; that is no fault of the test."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._send(200, b"", "text/plain")

    def do_GET(self) -> None:
        refusal = self.server.endpoint.models
        if refusal is not None:
            self._json(refusal.status, refusal.body, refusal.headers)
            return
        self._json(200, {"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        endpoint, body = self.server.endpoint, json.loads(raw or b"{}")
        path = self.path.partition("?")[0]
        if path.endswith("/count_tokens"):
            self._json(200, {"input_tokens": PROMPT_TOKENS})
            return
        endpoint.keys.append(
            (self.headers.get("x-api-key") or self.headers.get("authorization", "")).removeprefix("Bearer ")
        )
        endpoint.bodies.append(body)
        shell = _shell_tool(body)
        turn = endpoint.next_turn() if shell or _is_text_based(body) else Say(text="Scripted title")
        if isinstance(turn, Hang):
            endpoint.stopping.wait(turn.seconds)
            turn = Say(text="late")
        if isinstance(turn, Refuse):
            self._json(turn.status, turn.body, turn.headers)
            return
        speak = {"messages": _messages, "responses": _responses}.get(path.rpartition("/")[2], _chat)
        events, whole = speak(turn, shell, endpoint.taken, body)
        if not body.get("stream"):
            self._json(200, whole)
            return
        self._send(200, "".join(events).encode(), "text/event-stream")

    def _json(self, status: int, body: dict[str, Any], headers: Mapping[str, str] = {}) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _shell_tool(body: dict[str, Any]) -> str | None:
    names = {tool.get("name") or tool.get("function", {}).get("name") for tool in body.get("tools") or []}
    return next((name for name in ("Bash", "bash", "exec_command", "shell_command", "shell") if name in names), None)


def _is_text_based(body: dict[str, Any]) -> bool:
    """mini-swe-agent without tool calls: commands stand in the text."""
    return "mswea_bash_command" in json.dumps(body.get("messages", ""))


def _arguments(tool: str, command: str) -> dict[str, Any]:
    match tool:
        case "exec_command":
            return {"cmd": command}
        case "shell":
            return {"command": ["bash", "-lc", command]}
        case "bash":
            return {"command": command, "description": "scripted"}
    return {"command": command}


def _event(data: dict[str, Any]) -> str:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n"


Answer = tuple[Iterator[str], dict[str, Any]]


def _messages(turn: Turn, shell: str | None, number: int, body: dict[str, Any]) -> Answer:
    usage = {"input_tokens": PROMPT_TOKENS - CACHED_TOKENS, "cache_read_input_tokens": CACHED_TOKENS,
             "cache_creation_input_tokens": 0, "output_tokens": WRITTEN_TOKENS}  # fmt: skip
    call = isinstance(turn, Run) and shell is not None
    block: dict[str, Any] = {"type": "text", "text": _text(turn)}
    if isinstance(turn, Run) and shell is not None:
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": shell, "input": _arguments(shell, turn.command)}
    message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": body.get("model"), "content": [],
               "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}  # fmt: skip
    ended = {"stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None}
    opened = {**block, "input": {}} if call else {**block, "text": ""}
    delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])} if call else {"type": "text_delta", "text": block["text"]}  # fmt: skip

    def events() -> Iterator[str]:
        yield _event({"type": "message_start", "message": message})
        yield _event({"type": "content_block_start", "index": 0, "content_block": opened})
        yield _event({"type": "content_block_delta", "index": 0, "delta": delta})
        yield _event({"type": "content_block_stop", "index": 0})
        yield _event({"type": "message_delta", "delta": ended, "usage": usage})
        yield _event({"type": "message_stop"})

    return events(), {**message, **ended, "content": [block], "usage": usage}


def _responses(turn: Turn, shell: str | None, number: int, body: dict[str, Any]) -> Answer:
    item: dict[str, Any] = {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed",
                            "content": [{"type": "output_text", "text": _text(turn), "annotations": []}]}  # fmt: skip
    if isinstance(turn, Run) and shell is not None:
        item = {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}", "name": shell,
                "arguments": json.dumps(_arguments(shell, turn.command)), "status": "completed"}  # fmt: skip
    usage = {"input_tokens": PROMPT_TOKENS, "input_tokens_details": {"cached_tokens": CACHED_TOKENS},
             "output_tokens": WRITTEN_TOKENS, "output_tokens_details": {"reasoning_tokens": 0},
             "total_tokens": PROMPT_TOKENS + WRITTEN_TOKENS}  # fmt: skip
    response = {"id": f"resp_{number}", "object": "response", "created_at": int(time.time()), "model": body.get("model"),
                "status": "completed", "output": [item], "usage": usage}  # fmt: skip

    def events() -> Iterator[str]:
        yield _event({"type": "response.created", "response": {**response, "status": "in_progress", "output": []}})
        yield _event({"type": "response.output_item.added", "output_index": 0, "item": item})
        yield _event({"type": "response.output_item.done", "output_index": 0, "item": item})
        yield _event({"type": "response.completed", "response": response})

    return events(), response


def _chat(turn: Turn, shell: str | None, number: int, body: dict[str, Any]) -> Answer:
    message: dict[str, Any] = {"role": "assistant", "content": _text(turn)}
    if isinstance(turn, Run) and shell is not None:
        call = {"name": shell, "arguments": json.dumps(_arguments(shell, turn.command))}
        message = {"role": "assistant", "content": "", "tool_calls": [{"index": 0, "id": f"call_{number}", "type": "function", "function": call}]}  # fmt: skip
    elif isinstance(turn, Run):
        message["content"] = f"THOUGHT: go on\n\n```mswea_bash_command\n{turn.command}\n```"
    reason = "tool_calls" if "tool_calls" in message else "stop"
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": WRITTEN_TOKENS, "total_tokens": PROMPT_TOKENS + WRITTEN_TOKENS,
             "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS}}  # fmt: skip
    common = {"id": f"chat-{number}", "created": int(time.time()), "model": body.get("model")}

    def events() -> Iterator[str]:
        for delta, end in ((message, None), ({}, reason)):
            choice = {"index": 0, "delta": delta, "finish_reason": end}
            yield f"data: {json.dumps({**common, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        yield f"data: {json.dumps({**common, 'object': 'chat.completion.chunk', 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    choice = {"index": 0, "message": message, "finish_reason": reason}
    return events(), {**common, "object": "chat.completion", "choices": [choice], "usage": usage}


def _text(turn: Turn) -> str:
    return turn.text if isinstance(turn, Say) else ""
