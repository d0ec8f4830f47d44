-- read_session can read a page of what is new; its new argument makes another function of it, and the old one has to go.

drop function if exists chatledger.read_session(text, text, bigint, integer, integer);
