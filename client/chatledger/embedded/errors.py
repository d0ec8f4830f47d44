"""The one error of the embedded servers."""

from chatledger.errors import ChatLedgerError


class EmbeddedError(ChatLedgerError):
    """The embedded servers cannot be started; the hint says what to do, where that is known."""
