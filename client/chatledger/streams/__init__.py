"""The one stream of a session: its lease, and the answer that is saved while it grows."""
