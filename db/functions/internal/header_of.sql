-- header_of(p_session) -> chatledger.session_header
-- What the functions return of a session's row.
create or replace function chatledger_internal.header_of(p_session chatledger.sessions)
returns chatledger.session_header
language sql
immutable
as $function$
    select (p_session.id, p_session.user_id, p_session.title, p_session.metadata, p_session.pinned, p_session.status,
        p_session.prompt_tokens, p_session.completion_tokens, p_session.total_tokens,
        p_session.cache_read_tokens, p_session.cache_creation_tokens, p_session.reasoning_tokens,
        p_session.next_sequence - p_session.removed_count, p_session.next_sequence, p_session.version,
        p_session.forked_from, p_session.forked_at, p_session.created_at, p_session.updated_at
    )::chatledger.session_header
$function$;

comment on function chatledger_internal.header_of(chatledger.sessions) is 'A session''s row as a header.';
