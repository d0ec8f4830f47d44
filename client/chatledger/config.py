"""Settings, from arguments or from the environment (``CHATLEDGER_…``)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What a ledger can be told.

    Each field is also read from the environment: ``database_url`` from ``CHATLEDGER_DATABASE_URL``, and so on.
    """

    model_config = SettingsConfigDict(env_prefix="CHATLEDGER_", env_ignore_empty=True, extra="ignore")

    database_url: str | None = Field(default=None, repr=False)  # there may be a password in it
    """Where Postgres is. Without it, an embedded Postgres runs on :attr:`data_dir`."""
    listen_url: str | None = Field(default=None, repr=False)
    """Where to LISTEN for those who follow, when that is not where Postgres is: its own address, when
    :attr:`database_url` is a pgbouncer's."""
    follow_ttl: float = Field(default=60.0, ge=0.01, le=3600)
    """For how many seconds a follower asks for notifications at a time. After half of that it looks by itself."""
    redis_url: str | None = Field(default=None, repr=False)
    """Where Redis or Valkey is, for the session cache. Without it, everything works without a cache."""
    cache_ttl: float = Field(default=43_200.0, gt=0)
    """For how many seconds the cache keeps a copy of a session after it was last written."""
    cache_min_messages: int = Field(default=200, ge=0)
    """Sessions with fewer messages are not cached: reading them through a copy takes longer than without."""
    data_dir: Path | None = None
    """Folder of the embedded servers; by default the user's data folder."""
    pool_size: int = Field(default=10, ge=1)
    """How many connections a ledger opened from a URL may hold."""
    prepared_statements: bool = True
    """Set to false behind pgbouncer's transaction pooling."""
    retry_deadline: float = Field(default=10.0, ge=0)
    """For how many seconds a call is tried again after a lost connection, a deadlock or a serialization failure."""
    stream_ttl: float = Field(default=3600.0, gt=0, le=86_400)
    """For how many seconds a stream's lease lasts; it is renewed three times as often. After a crash, the session is
    busy for so long, unless somebody takes over by force."""
    flush_interval: float = Field(default=0.5, ge=0)
    """A stream saves its growing message at most every so many seconds."""
