-- read_session can read a page of what is new. Its new argument makes another function of it, and the old one has to go:
-- a database that is new has none.

set local client_min_messages = warning;
drop function if exists chatledger.read_session(text, text, bigint, integer, integer);
