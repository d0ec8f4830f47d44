"""A ledger of conversations in Postgres: many writers, one order, nothing lost."""

from chatledger.config import Settings
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
    UsageConflict,
)
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
    "InvalidArgument",
    "InvalidMessage",
    "MessageIdConflict",
    "MessageNotFound",
    "MigrationError",
    "Problem",
    "SequenceConflict",
    "SessionHeader",
    "SessionIdConflict",
    "SessionNotFound",
    "SessionPage",
    "Settings",
    "StaleFence",
    "ToolCallReceipt",
    "Truncation",
    "Usage",
    "UsageConflict",
    "__version__",
    "migrate",
]
