-- Streams: which call took a session's lease, and since when.
-- Writers to sessions wait while the index is built: one scan of the table, since there are no streams yet.

alter table chatledger.sessions
    add column stream_id text,
    add column stream_began_at timestamptz;

-- Who streams right now, and how many of them a user has. Neither appends nor renewals change what is in it, so their
-- updates stay HOT; only the beginning and the end of a stream are not.
-- squawk-ignore require-concurrent-index-creation -- not possible in the migrator's transaction
create index sessions_streaming on chatledger.sessions (user_id) where stream_id is not null;

comment on column chatledger.sessions.stream_id is 'The caller''s id of the stream that took the lease; null: it was ended.';
comment on column chatledger.sessions.stream_fence is 'Counts the streams of the session. Never goes down, also not when the session is deleted.';
