"""A conversation as server-sent events, for a browser that reconnects: see docs/sse.md.

CHATLEDGER_DATABASE_URL=postgresql://… python docs/examples/sse.py
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from chatledger import ChatLedger


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, ChatLedger]]:
    async with ChatLedger() as ledger:
        yield {"ledger": ledger}


def user_of(request: Request) -> str:
    """Who asks. Your own authentication goes here; a cookie, since EventSource cannot send other headers."""
    if user_id := request.cookies.get("user"):
        return user_id
    raise HTTPException(401)


async def events(request: Request) -> StreamingResponse:
    ledger: ChatLedger = request.state.ledger
    session_id, user_id = request.path_params["session_id"], user_of(request)
    try:
        after = int(request.headers.get("last-event-id") or request.query_params.get("after") or -1)
    except ValueError:
        raise HTTPException(400, "Last-Event-ID is a sequence") from None
    # Now, since the status cannot be changed once the stream has begun.
    if await ledger.get_session(session_id, user_id=user_id, last=1) is None:
        raise HTTPException(404)

    async def stream() -> AsyncIterator[str]:
        yield ": following\n\n"  # so that the browser knows at once that it is connected
        async for event in ledger.follow(session_id, after=after, user_id=user_id):
            # What the browser sends back as Last-Event-ID is the last id that it got: that of a message.
            if event.kind == "appended":
                yield f"id: {event.sequence}\n"
            yield f"event: {event.kind}\ndata: {event.model_dump_json()}\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would wait for more
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


app = Starlette(routes=[Route("/sessions/{session_id}/events", events)], lifespan=lifespan)

if __name__ == "__main__":
    # Streams have no end of their own: a server that shuts down does not wait for it.
    uvicorn.run(app, port=8000, timeout_graceful_shutdown=1)
