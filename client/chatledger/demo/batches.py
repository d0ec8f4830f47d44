"""What the writers write: decided beforehand, the same on every run, each message with an id of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

Kind = Literal["Python task", "Python process", "psql"]
Message = dict[str, Any]
Batch = tuple[Message, ...]

_CITIES = ("Lisbon", "Oslo", "Nairobi", "Lima", "Kyoto", "Quebec", "Perth", "Izmir")
_TEXTS = {
    "user": ("Will it rain in {city} tomorrow?", "What should I pack for {city}?", "How warm is it in {city}?"),
    "assistant": ("{city}: dry until the evening, then showers.", "Take a light jacket to {city}.", "Let me look."),
    "tool": ('{{"city": "{city}", "celsius": 19, "rain": 0.2}}',),
}
# One way or another through a turn, for batches of one to five messages. "call" is an assistant calling a tool.
_SHAPES = (
    ("user",),
    ("assistant",),
    ("user", "assistant"),
    ("call", "tool"),
    ("call", "tool", "assistant"),
    ("user", "call", "tool", "assistant"),
    ("user", "call", "tool", "assistant", "user"),
)


@dataclass(frozen=True, slots=True)
class Writer:
    """One who appends, and all that it is going to append, in its order."""

    name: str
    kind: Kind
    batches: tuple[Batch, ...]

    @property
    def messages(self) -> list[Message]:
        """All its messages, in its order."""
        return [message for batch in self.batches for message in batch]


def make_writer(name: str, kind: Kind, batches: int) -> Writer:
    """Return a writer with so many batches; the same name gives the same batches."""
    return Writer(name, kind, tuple(islice(_conversation(name), batches)))


def _conversation(name: str) -> Iterator[Batch]:
    choice = random.Random(name)
    number = 0
    while True:
        shape, city = choice.choice(_SHAPES), choice.choice(_CITIES)
        yield tuple(_batch(f"{name}-{number}", shape, city, choice))
        number += 1


def _batch(name: str, shape: tuple[str, ...], city: str, choice: random.Random) -> Iterator[Message]:
    for index, role in enumerate(shape):
        message_id = f"{name}-{index}"
        if role == "call":
            function = {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'}
            call = {"id": f"call-{message_id}", "type": "function", "function": function}
            yield {"message_id": message_id, "role": "assistant", "content": None, "tool_calls": [call]}
            continue
        message = {"message_id": message_id, "role": role, "content": choice.choice(_TEXTS[role]).format(city=city)}
        if role == "tool":
            message["tool_call_id"] = f"call-{name}-{index - 1}"  # the message before is the call
        yield message
