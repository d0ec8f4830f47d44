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
from chatledger.follow import SessionEvent
from chatledger.ledger import ChatLedger
from chatledger.migrations import migrate
from chatledger.models import (
    AmendReceipt,
    AppendReceipt,
    ChatMessage,
    ChatSession,
    Problem,
    SessionHeader,
    SessionPage,
    ToolCallReceipt,
    Truncation,
    Usage,
)
from chatledger.openai_format import Repair
from chatledger.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "AmendConflict",
    "AmendReceipt",
    "AppendReceipt",
    "ChatLedger",
    "ChatLedgerError",
    "ChatMessage",
    "ChatSession",
    "DatabaseUnavailable",
    "EmbeddedError",
    "InvalidArgument",
    "InvalidMessage",
    "MessageIdConflict",
    "MessageNotFound",
    "MigrationError",
    "Problem",
    "Repair",
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
    "Truncation",
    "Usage",
    "UsageConflict",
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
