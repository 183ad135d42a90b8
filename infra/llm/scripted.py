"""A model whose answers are written down: a real HTTP server that speaks OpenAI's chat completions and Anthropic's messages.

The product's test double and its offline demonstration. In a test: `with ScriptedModel([on("fix", "the answer")]) as model:`,
then `model.openai_url`. As a process: `python -m infra.llm.scripted --script FILE --log FILE --port-file FILE`, where the
script is `{"rules": [{"match": …, "answers": […]}]}` and the log gets one JSON line per request, across deaths of the process.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from infra.errors import ConfigError
from infra.llm import FinishReason, Frozen, ToolCall

Protocol = Literal["openai", "anthropic"]
CHARACTERS_PER_TOKEN = 4
PIECE_CHARACTERS = 16
DRIP_SECONDS = 0.05


class Answer(Frozen):
    """A good answer. `finish_reason` None: `tool_calls` when there are some, `length` when cut by max_tokens, else `stop`."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason | None = None
    delay_seconds: float = Field(default=0, ge=0, le=60)


class Fault(Frozen):
    """A bad answer.

    `status`: that HTTP status with `headers` and `body` (None: the protocol's usual error body). `garbage`, `html`: a 200 that is
    not the protocol. `cut`: half an answer, then a clean end of the connection. `error_event`: half an answer, then an error
    (`body`) inside the stream. `drip`: keep-alive comments for `seconds`. `silent`: nothing for `seconds`. `reset`: the
    connection is torn down.
    """

    kind: Literal["status", "garbage", "html", "cut", "error_event", "drip", "silent", "reset"]
    status: int = 500
    headers: dict[str, str] = {}
    body: dict[str, Any] | str | None = None
    seconds: float = Field(default=5, ge=0, le=60)


class Rule(Frozen):
    """Prompts that hold `match` (a regular expression when `regex`) get the answers in turn; the last one repeats."""

    match: str
    answers: tuple[str | Fault | Answer, ...] = Field(min_length=1)
    regex: bool = False

    def fits(self, prompt: str) -> bool:
        return re.search(self.match, prompt, re.DOTALL) is not None if self.regex else self.match in prompt


def on(match: str, *answers: str | Fault | Answer, regex: bool = False) -> Rule:
    """Short for `Rule`."""
    return Rule(match=match, answers=answers, regex=regex)


class Script(Frozen):
    """The content of a script file."""

    rules: tuple[Rule, ...]


class Received(Frozen):
    """One request as it came. `rule` is the place of the rule that answered, None when none fitted.

    The key itself is not kept; `key_header` says how it came.
    """

    protocol: Protocol
    prompt: str
    rule: int | None
    key_header: Literal["authorization", "x-api-key"] | None
    body: dict[str, Any]
    at: float
    """Seconds since the epoch."""


class ScriptedModel:
    """The server. `requests` lists what came in, oldest first; `calls` counts it."""

    def __init__(self, rules: Sequence[Rule] = (), log: Path | None = None, port: int = 0) -> None:
        """The first rule that fits answers. `log` is appended to; turns go on where an earlier process left off.

        `port` 0 takes a free one.
        """
        self.rules = list(rules)
        self.requests: list[Received] = _read_log(log)
        self.stopping = threading.Event()
        self._log, self._lock = log, threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.model = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Base URL without a path: what `AnthropicClient` takes."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def openai_url(self) -> str:
        """Base URL with `/v1`: what `OpenAIClient` takes."""
        return f"{self.url}/v1"

    @property
    def calls(self) -> int:
        return len(self.requests)

    def start(self) -> ScriptedModel:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening. Answers under way (drips too) end."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> ScriptedModel:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def take_turn(self, protocol: Protocol, body: dict[str, Any], key_header: str | None) -> tuple[Answer | Fault, int]:
        """Record a request. Returns what to answer and how many prompt tokens an earlier prompt already had."""
        prompt = prompt_text(protocol, body)
        with self._lock:
            index = next((i for i, rule in enumerate(self.rules) if rule.fits(prompt)), None)
            turn = sum(1 for request in self.requests if request.rule == index)
            cached = max((shared_characters(prompt, r.prompt) for r in self.requests), default=0)
            fields = {"protocol": protocol, "prompt": prompt, "rule": index, "key_header": key_header, "body": body}
            self._record(Received.model_validate({**fields, "at": time.time()}))
        if index is None:
            return _no_rule(prompt), 0
        answers = self.rules[index].answers
        chosen = answers[min(turn, len(answers) - 1)]
        return (Answer(text=chosen) if isinstance(chosen, str) else chosen), cached // CHARACTERS_PER_TOKEN

    def _record(self, received: Received) -> None:
        self.requests.append(received)
        if self._log:
            with self._log.open("a") as file:
                file.write(received.model_dump_json() + "\n")


def prompt_text(protocol: Protocol, body: dict[str, Any]) -> str:
    """The whole prompt as one text, a line `role: …` per message; system first."""
    messages = list(body.get("messages") or [])
    if protocol == "anthropic" and body.get("system"):
        messages.insert(0, {"role": "system", "content": body["system"]})
    return "\n".join(f"{message.get('role')}: {_content_text(message.get('content'))}" for message in messages)


def shared_characters(one: str, other: str) -> int:
    """Length of the longest common beginning."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _content_text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(_content_text(block.get("text", block.get("content"))) for block in content)
    return content if isinstance(content, str) else ""


def _no_rule(prompt: str) -> Fault:
    message = f"no rule of the script fits this prompt, which ends with {prompt[-200:]!r}; add one"
    return Fault(kind="status", status=400, body={"error": {"type": "invalid_request_error", "message": message}})


def _read_log(log: Path | None) -> list[Received]:
    """What earlier processes recorded; a line that a kill cut short is left out."""
    if log is None or not log.exists():
        return []
    lines = log.read_text().splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Received.model_validate_json(line))
        except ValidationError:
            if number < len(lines):
                raise ConfigError(f"line {number} of {str(log)!r} is no recorded request; name another log") from None
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True
    model: ScriptedModel


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request: HTTP/1.0, so that the end of an answer is the end of the connection."""

    server: _Server
    timeout = 60
    protocols: ClassVar[dict[str, Protocol]] = {"/v1/chat/completions": "openai", "/v1/messages": "anthropic"}

    def do_GET(self) -> None:
        if self.path == "/health":
            self._json(200, {"status": "ok"})
        elif self.path.partition("?")[0] == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "scripted", "object": "model", "type": "model"}]})
        else:
            self._json(404, {"error": {"type": "not_found_error", "message": f"no such path: {self.path}"}})

    def do_POST(self) -> None:
        protocol = self.protocols.get(self.path)
        if protocol is None:
            self._json(404, {"error": {"type": "not_found_error", "message": f"no such path: {self.path}"}})
            return
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)))
            self._answer(protocol, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, protocol: Protocol, body: dict[str, Any]) -> None:
        missing = [name for name in ("model", "messages") if not body.get(name)]
        if protocol == "anthropic":
            missing += [name for name in ("max_tokens",) if not body.get(name)]
            missing += [name for name in ("anthropic-version",) if not self.headers.get(name)]
        if missing:
            self._json(400, {"error": {"type": "invalid_request_error", "message": f"missing: {missing}"}})
            return
        key_header = next((name for name in ("authorization", "x-api-key") if self.headers.get(name)), None)
        answer, cached = self.server.model.take_turn(protocol, body, key_header)
        if isinstance(answer, Fault):
            self._fault(protocol, body, answer)
        else:
            self.server.model.stopping.wait(answer.delay_seconds)
            self._good(protocol, body, _bounded(answer, body), cached)

    def _good(self, protocol: Protocol, body: dict[str, Any], answer: Answer, cached: int) -> None:
        spoken = _OpenAIReply if protocol == "openai" else _AnthropicReply
        reply = spoken(body, answer, cached)
        if body.get("stream"):
            self._open_stream()
            for event in reply.events():
                self._send(event)
        else:
            self._json(200, reply.whole())

    def _fault(self, protocol: Protocol, body: dict[str, Any], fault: Fault) -> None:
        match fault.kind:
            case "status":
                self._status(protocol, fault)
            case "garbage":
                self._plain(200, "text/event-stream", "data: {not json\n\n", {})
            case "html":
                self._plain(200, "text/html", "<html><title>Sign in</title></html>", {})
            case "cut" | "error_event":
                self._half(protocol, body, fault)
            case "drip":
                self._drip(fault.seconds)
            case "silent":
                self.server.model.stopping.wait(fault.seconds)
            case "reset":
                self._reset()

    def _status(self, protocol: Protocol, fault: Fault) -> None:
        value = _usual_error(protocol, fault.status) if fault.body is None else fault.body
        if isinstance(value, str):
            self._plain(fault.status, "text/plain", value, fault.headers)
        else:
            self._plain(fault.status, "application/json", json.dumps(value), fault.headers)

    def _half(self, protocol: Protocol, body: dict[str, Any], fault: Fault) -> None:
        spoken = _OpenAIReply if protocol == "openai" else _AnthropicReply
        events = list(
            spoken(body, Answer(text="half an answer that is never finished", finish_reason="stop"), 0).events()
        )
        self._open_stream()
        for event in events[:3]:
            self._send(event)
        if fault.kind == "error_event":
            error = _usual_error(protocol, 529) if fault.body is None else fault.body
            self._send(("error" if protocol == "anthropic" else None, json.dumps(error)))

    def _drip(self, seconds: float) -> None:
        self._open_stream()
        for _ in range(int(seconds / DRIP_SECONDS)):
            self.wfile.write(b": keep-alive\n\n")
            if self.server.model.stopping.wait(DRIP_SECONDS):
                return

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> None:
        """A connection that was reset has nothing left to flush."""
        if self.connection.fileno() != -1:
            super().finish()

    def _open_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.end_headers()

    def _send(self, event: tuple[str | None, str]) -> None:
        name, data = event
        self.wfile.write((f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode())

    def _json(self, status: int, value: dict[str, Any]) -> None:
        self._plain(status, "application/json", json.dumps(value), {})

    def _plain(self, status: int, kind: str, text: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(text.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: `requests` is the log."""


def _bounded(answer: Answer, body: dict[str, Any]) -> Answer:
    """The answer cut at a stop text and at max_tokens, as a real server does."""
    text = answer.text
    for stop in body.get("stop") or body.get("stop_sequences") or []:
        text = text.partition(stop)[0]
    limit = (body.get("max_completion_tokens") or body.get("max_tokens") or sys.maxsize) * CHARACTERS_PER_TOKEN
    finish: FinishReason = "tool_calls" if answer.tool_calls else "length" if len(text) > limit else "stop"
    return answer.model_copy(update={"text": text[:limit], "finish_reason": answer.finish_reason or finish})


def _usual_error(protocol: Protocol, status: int) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status) or ("overloaded_error" if status in (503, 529) else None)
    error = {"type": kind or ("api_error" if status >= 500 else "invalid_request_error"), "message": "scripted fault"}
    return {"type": "error", "error": error} if protocol == "anthropic" else {"error": {**error, "code": None}}


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


class _Reply:
    """One good answer on its way into a protocol's words. An event is (name or None, data)."""

    protocol: ClassVar[Protocol]

    def __init__(self, body: dict[str, Any], answer: Answer, cached: int) -> None:
        self.body, self.answer, self.cached = body, answer, cached
        self.model = body.get("model") or "scripted"
        self.prompt_tokens = len(prompt_text(self.protocol, body)) // CHARACTERS_PER_TOKEN
        written = answer.text + "".join(call.arguments for call in answer.tool_calls)
        self.completion_tokens = -(-len(written) // CHARACTERS_PER_TOKEN)


class _OpenAIReply(_Reply):
    protocol = "openai"

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.answer.text, **self._calls()}
        choice = {"index": 0, "message": message, "finish_reason": self.answer.finish_reason}
        return {"object": "chat.completion", "model": self.model, "choices": [choice], "usage": self._usage()}

    def events(self) -> Iterator[tuple[str | None, str]]:
        yield self._chunk({"role": "assistant", "content": ""})
        for piece in _pieces(self.answer.text):
            yield self._chunk({"content": piece})
        if self.answer.tool_calls:
            yield from self._call_chunks()
        yield self._chunk({}, self.answer.finish_reason)
        if (self.body.get("stream_options") or {}).get("include_usage"):
            usage = {"choices": [], "usage": self._usage()}
            yield None, json.dumps({"object": "chat.completion.chunk", "model": self.model, **usage})
        yield None, "[DONE]"

    def _call_chunks(self) -> Iterator[tuple[str | None, str]]:
        for index, call in enumerate(self.answer.tool_calls):
            head = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
            yield self._chunk({"tool_calls": [head]})
            for piece in _pieces(call.arguments):
                yield self._chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> tuple[None, str]:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return None, json.dumps({"object": "chat.completion.chunk", "model": self.model, "choices": choices})

    def _calls(self) -> dict[str, Any]:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.answer.tool_calls
        ]
        return {"tool_calls": calls} if calls else {}

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class _AnthropicReply(_Reply):
    protocol = "anthropic"
    stop_reasons: ClassVar[dict[str | None, str]] = {
        "stop": "end_turn",
        "length": "max_tokens",
        "tool_calls": "tool_use",
    }

    def whole(self) -> dict[str, Any]:
        content = [
            {**block, "text": written} if block["type"] == "text" else {**block, "input": json.loads(written)}
            for block, written in self._blocks()
        ]
        stated = {"content": content, "stop_reason": self._stop(), "usage": {**self._input(), **self._output()}}
        return {"type": "message", "role": "assistant", "model": self.model, **stated}

    def events(self) -> Iterator[tuple[str | None, str]]:
        usage = {**self._input(), "output_tokens": 1}
        message: dict[str, Any] = {"type": "message", "role": "assistant", "model": self.model}
        yield self._event("message_start", message={**message, "content": [], "stop_reason": None, "usage": usage})
        for index, (block, written) in enumerate(self._blocks()):
            yield self._event("content_block_start", index=index, content_block=block)
            for piece in _pieces(written):
                yield self._event("content_block_delta", index=index, delta=self._delta(block, piece))
            yield self._event("content_block_stop", index=index)
        yield self._event("ping")
        yield self._event("message_delta", delta={"stop_reason": self._stop()}, usage=self._output())
        yield self._event("message_stop")

    def _forced(self) -> str | None:
        return (self.body.get("tool_choice") or {}).get("name")

    def _stop(self) -> str:
        forced = self._forced() and self.answer.finish_reason == "stop"
        return "tool_use" if forced else self.stop_reasons[self.answer.finish_reason]

    def _blocks(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Empty blocks with what is written into them. A forced tool gets the text as its input."""
        if forced := self._forced():
            yield {"type": "tool_use", "id": "toolu_forced", "name": forced, "input": {}}, self.answer.text
        elif self.answer.text:
            yield {"type": "text", "text": ""}, self.answer.text
        for call in self.answer.tool_calls:
            yield {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, call.arguments

    def _delta(self, block: dict[str, Any], piece: str) -> dict[str, str]:
        if block["type"] == "text":
            return {"type": "text_delta", "text": piece}
        return {"type": "input_json_delta", "partial_json": piece}

    def _event(self, kind: str, **fields: Any) -> tuple[str, str]:
        return kind, json.dumps({"type": kind, **fields})

    def _input(self) -> dict[str, int]:
        return {"input_tokens": self.prompt_tokens - self.cached, "cache_read_input_tokens": self.cached}

    def _output(self) -> dict[str, int]:
        return {"output_tokens": self.completion_tokens}


def load_script(path: Path) -> list[Rule]:
    """Read a script file. Raises ConfigError naming what is wrong with it."""
    try:
        return list(TypeAdapter(Script).validate_json(path.read_bytes()).rules)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no script {str(path)!r}; write one: {{'rules': [{{'match', 'answers'}}]}}"
        ) from None
    except ValidationError as error:
        raise ConfigError(f"script {str(path)!r} is not valid: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal. Prints the base URL; `--port-file` gets the port once it answers."""
    parser = argparse.ArgumentParser(prog="python -m infra.llm.scripted")
    parser.add_argument("--script", type=Path, required=True)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path)
    given = parser.parse_args(arguments)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with ScriptedModel(load_script(given.script), given.log, given.port) as model:
        print(model.openai_url, flush=True)
        if given.port_file:
            draft = given.port_file.with_suffix(".tmp")
            draft.write_text(model.url.rpartition(":")[2])
            draft.replace(given.port_file)
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
