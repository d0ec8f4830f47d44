"""A chat completions API that plays recordings: the model of a request says which one is streamed.

python -m tests.helpers.openai_server    prints its base URL and serves until its standard input ends
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
HOLD = "hold"
"""In a recording: what follows is sent once the test says so."""
CUT = "cut"
"""In a recording: the connection breaks here."""


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk as OpenAI sends it; without a delta, one without a choice."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return {
        "id": "chatcmpl-BkHfU4",
        "object": "chat.completion.chunk",
        "created": 1750345678,
        "model": "gpt-5-2025-08-07",
        "service_tier": "default",
        "system_fingerprint": "fp_51e1070cf2",
        "choices": choices,
        "usage": None,
        "obfuscation": "pN1qz",
        **more,
    }


def call(index: int, arguments: str, call_id: str | None = None, name: str | None = None) -> dict[str, Any]:
    """A delta with a fragment of a tool call; the first one has the id and the name."""
    if call_id is None:
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}


START = chunk({"role": "assistant", "content": "", "refusal": None})
TEXT = [START, *(chunk({"content": text}) for text in ("Hello", "! How", " can I", " help?"))]
STOP = chunk({}, "stop")
TOTAL = chunk(None, usage=USAGE)
CALLS = [
    chunk({"role": "assistant", "content": None, "refusal": None}),
    chunk(call(0, "", "call_oslo", "get_weather")),
    *(chunk(call(0, text)) for text in ('{"', "city", '":"', "Oslo", '"}')),
    chunk(call(1, "", "call_rome", "get_weather")),
    *(chunk(call(1, text)) for text in ('{"city"', ':"Rome"}')),
]

RECORDINGS: dict[str, list[Any]] = {
    "text": [*TEXT, STOP, TOTAL],
    "text without usage": [*TEXT, STOP],
    "held text": [*TEXT, HOLD, chunk({"content": " Go on."}), STOP, TOTAL],
    "cut text": [*TEXT, HOLD, CUT],
    "text cut short": [*TEXT, chunk({}, "length"), TOTAL],
    "calls": [*CALLS, chunk({}, "tool_calls"), TOTAL],
    "calls after text": [*TEXT, *CALLS[1:], chunk({}, "tool_calls"), TOTAL],
    "cut calls": [*CALLS, HOLD, CUT],
    "refusal": [
        START,
        *(chunk({"refusal": text}) for text in ("I'm sorry,", " I can't", " help with that.")),
        STOP,
        TOTAL,
    ],
    "emoji": [START, chunk({"content": "Ahoj 👩"}), chunk({"content": "\u200d🚀 ok"}), STOP, TOTAL],
    # The second half of the second character is in the next chunk, as some servers escape it.
    "halves": [START, chunk({"content": "🙂\ud83d"}), HOLD, chunk({"content": "\ude80!"}), STOP, TOTAL],
    "answer after calls": [
        chunk({"role": "assistant", "content": "Oslo 3°, Rome 19°."}, id="chatcmpl-BkHfV9"),
        chunk({}, "stop", id="chatcmpl-BkHfV9"),
        chunk(None, id="chatcmpl-BkHfV9", usage=USAGE | {"prompt_tokens": 31, "total_tokens": 41}),
    ],
    # Azure: filters' results before, without a completion, and in between, without a delta.
    "azure": [
        {
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "choices": [],
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}],
        },
        *TEXT,
        {
            "id": "",
            "object": "",
            "created": 0,
            "model": "",
            "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"check_offset": 44}}],
        },
        STOP,
        TOTAL,
    ],
    # DeepSeek and others: a field of their own, and the role with each chunk.
    "reasoning": [
        *(
            chunk({"role": "assistant", "content": None, "reasoning_content": text})
            for text in ("The user", " greets me.")
        ),
        chunk({"role": "assistant", "content": "Hello!", "reasoning_content": None}),
        chunk({"role": "assistant", "content": "", "reasoning_content": None}, "stop", usage=USAGE),
    ],
    # Mistral and others: the usage with the last choice. vLLM: with every chunk, what it is so far.
    "usage in every chunk": [
        chunk({"role": "assistant", "content": "Hel"}, usage=USAGE | {"completion_tokens": 1, "total_tokens": 20}),
        chunk({"content": "lo!"}, usage=USAGE | {"completion_tokens": 2, "total_tokens": 21}),
        chunk({}, "stop", usage=USAGE),
    ],
    # OpenRouter: the usage in a choice that says nothing, after the end.
    "usage in an empty choice": [
        *TEXT,
        STOP,
        chunk({"role": "assistant", "content": ""}, usage=USAGE),
    ],
}


class OpenAIServer:
    """What a test holds of it."""

    def __init__(self) -> None:
        self.base_url = ""
        self.go_on = asyncio.Event()
        """Sends what a recording holds back."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
            request = json.loads(await reader.readexactly(int(length)))
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for event in [*_recording(request), "[DONE]"]:
                if event == CUT:
                    return
                if event == HOLD:
                    await self.go_on.wait()
                    continue
                # Escaped, as servers do it, only what UTF-8 cannot say: half a character.
                text = event if event == "[DONE]" else json.dumps(event, ensure_ascii="\\ud" in ascii(event))
                await _send(writer, f"data: {text}\n\n".encode(), split=request["model"] == "emoji")
            await _send(writer, b"")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is gone
        finally:
            writer.close()


def _recording(request: dict[str, Any]) -> list[Any]:
    """The one that the model names; of any other model, one that fits the request."""
    if request["model"] in RECORDINGS:
        return RECORDINGS[request["model"]]
    if "tools" not in request:
        return RECORDINGS["text"]
    return RECORDINGS["answer after calls" if request["messages"][-1]["role"] == "tool" else "calls"]


async def _send(writer: asyncio.StreamWriter, body: bytes, *, split: bool = False) -> None:
    # Split: every byte comes for itself, so characters come in pieces.
    for piece in [body[at : at + 1] for at in range(len(body))] if split else [body]:
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(0)


@asynccontextmanager
async def openai_server() -> AsyncIterator[OpenAIServer]:
    """Serve on a free port."""
    played = OpenAIServer()
    server = await asyncio.start_server(played._serve, "127.0.0.1", 0)
    played.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield played
    finally:
        played.go_on.set()
        server.close()


async def _main() -> None:
    async with openai_server() as server:
        print(server.base_url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
