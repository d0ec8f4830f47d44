"""Settings, from arguments or from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from chatledger import Settings


def test_each_field_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLEDGER_STREAM_TTL", "60")
    monkeypatch.setenv("CHATLEDGER_DATA_DIR", "/data")
    settings = Settings()
    assert (settings.stream_ttl, settings.data_dir) == (60.0, Path("/data"))


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "LISTEN_URL", "DATA_DIR", "POOL_SIZE"])
def test_a_variable_that_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As in a compose file, `CHATLEDGER_REDIS_URL=${REDIS_URL:-}`."""
    monkeypatch.setenv(f"CHATLEDGER_{name}", "")
    assert Settings() == Settings.model_construct()


@pytest.mark.parametrize("ttl", [0, 86_401])
def test_a_lease_is_as_short_as_the_database_wants_it(ttl: float) -> None:
    with pytest.raises(ValidationError, match="stream_ttl"):
        Settings(stream_ttl=ttl)
