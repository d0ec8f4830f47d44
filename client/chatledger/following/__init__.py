"""Following a session: what is in it, then what happens to it, as it is committed."""
