"""google-adk: DatabaseSessionService. It refuses a stale copy of the session; the caller loads it again and goes on."""

from __future__ import annotations

from google.adk.events.event import Event
from google.adk.sessions.database_session_service import DatabaseSessionService
from google.genai import types

RETRIES = 5


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        url = database_url.replace("postgresql:", "postgresql+asyncpg:")
        self.service = DatabaseSessionService(url, pool_size=16, max_overflow=0)
        await self.service.prepare_tables()

    async def handle(self, session_id: str, *, first: bool) -> dict[str, object]:
        if first:
            await self.service.create_session(app_name="bench", user_id="u", session_id=session_id)
        return {"session": await self._session(session_id)}

    async def append(self, handle: dict[str, object], batch: list[tuple[str, str]]) -> None:
        for role, text in batch:
            author = "user" if role == "user" else "model"
            content = types.Content(role=author, parts=[types.Part(text=text)])
            for retries in range(RETRIES + 1):
                try:
                    event = Event(author=author, invocation_id="bench", content=content)
                    await self.service.append_event(handle["session"], event)
                    break
                except Exception:
                    if retries == RETRIES:
                        raise
                    handle["session"] = await self._session(handle["session"].id)  # type: ignore[attr-defined]

    async def _session(self, session_id: str) -> object:
        return await self.service.get_session(app_name="bench", user_id="u", session_id=session_id)

    async def load(self, session_id: str) -> list[str]:
        session = await self.service.get_session(app_name="bench", user_id="u", session_id=session_id)
        return [event.content.parts[0].text for event in session.events]

    async def close(self) -> None:
        await self.service.close()
