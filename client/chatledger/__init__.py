"""A ledger of conversations in Postgres: many writers, one order, nothing lost."""

from chatledger.chat import (
    append_and_save_message,
    close_default_ledger,
    create_chat_session,
    default_ledger,
    delete_chat_session,
    get_chat_session,
    get_user_sessions,
    set_default_ledger,
    update_session_title,
    upsert_chat_session,
)
from chatledger.config import Settings
from chatledger.embedded import EmbeddedError
from chatledger.errors import (
    AmendConflict,
    BatchTooLarge,
    ChatLedgerError,
    DatabaseUnavailable,
    InvalidArgument,
    InvalidMessage,
    MessageIdConflict,
    MessageNotFound,
    MigrationError,
    SequenceConflict,
    SessionIdConflict,
    SessionNotFound,
    StaleFence,
    StreamBusy,
    TooManyStreams,
    UsageConflict,
)
from chatledger.following.events import SessionEvent
from chatledger.ledger import ChatLedger
from chatledger.models.header import SessionHeader, SessionPage, Usage, UsageTotals
from chatledger.models.message import ChatMessage
from chatledger.models.openai_format import HistoryRepair
from chatledger.models.receipts import AmendReceipt, AppendReceipt, IntegrityProblem, ToolCallReceipt, TruncateReceipt
from chatledger.models.session import ChatSession
from chatledger.postgres.migrations import migrate
from chatledger.streams.stream import Stream
from chatledger.version import __version__

__all__ = [
    "AmendConflict",
    "AmendReceipt",
    "AppendReceipt",
    "BatchTooLarge",
    "ChatLedger",
    "ChatLedgerError",
    "ChatMessage",
    "ChatSession",
    "DatabaseUnavailable",
    "EmbeddedError",
    "HistoryRepair",
    "IntegrityProblem",
    "InvalidArgument",
    "InvalidMessage",
    "MessageIdConflict",
    "MessageNotFound",
    "MigrationError",
    "SequenceConflict",
    "SessionEvent",
    "SessionHeader",
    "SessionIdConflict",
    "SessionNotFound",
    "SessionPage",
    "Settings",
    "StaleFence",
    "Stream",
    "StreamBusy",
    "TooManyStreams",
    "ToolCallReceipt",
    "TruncateReceipt",
    "Usage",
    "UsageConflict",
    "UsageTotals",
    "__version__",
    "append_and_save_message",
    "close_default_ledger",
    "create_chat_session",
    "default_ledger",
    "delete_chat_session",
    "get_chat_session",
    "get_user_sessions",
    "migrate",
    "set_default_ledger",
    "update_session_title",
    "upsert_chat_session",
]

# Where users find them, whatever module defines them: for pickles, tracebacks and help().
for _name in __all__:
    if isinstance(_public := globals()[_name], type):
        _public.__module__ = __name__
del _name, _public
