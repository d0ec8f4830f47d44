-- header_now(p_session, p_next_sequence, p_version, p_updated_at) -> chatledger.session_header
-- What the functions return of a session's row, with where the session is now. Inlined.
create or replace function chatledger_internal.header_now(
    p_session chatledger.sessions,
    p_next_sequence integer,
    p_version bigint,
    p_updated_at timestamptz
)
returns chatledger.session_header
language sql
immutable
as $function$
    select (p_session.id, p_session.user_id, p_session.title, p_session.metadata, p_session.pinned, p_session.status,
        p_session.prompt_tokens, p_session.completion_tokens, p_session.total_tokens,
        p_session.cache_read_tokens, p_session.cache_creation_tokens, p_session.reasoning_tokens,
        p_next_sequence - p_session.removed_count, p_next_sequence, p_version,
        p_session.forked_from, p_session.forked_at, p_session.created_at, p_updated_at
    )::chatledger.session_header
$function$;

comment on function chatledger_internal.header_now(chatledger.sessions, integer, bigint, timestamptz) is
    'A session''s row as a header of now.';
