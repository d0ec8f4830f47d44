-- fork_session(p_session_id, p_new_session_id, p_at_sequence, p_user_id, p_title) -> chatledger.session_header of the fork
--
-- Branches a session: a new one with the same user and metadata and a copy of the messages up to and including
-- p_at_sequence, numbered anew from 0. Message ids and times are kept, usage is not.
--
-- p_session_id      the session
-- p_new_session_id  the fork's id
-- p_at_sequence     the last message to copy; null: all
-- p_user_id         only if the session belongs to this user; null skips the check (a trusted caller)
-- p_title           the fork's title; null: the session's
--
-- Idempotent: the same fork again returns it as it is.
-- Locks:      the session's row, so that header and messages are of one moment.
-- Writes:     sessions, watches, messages.
-- Raises:     CL001 session not found, CL008 invalid argument, CL010 the new id is already used; 40001.
-- Example:    select * from chatledger.fork_session('s1', 's1-other-answer', 3);
create or replace function chatledger.fork_session(
    p_session_id text,
    p_new_session_id text,
    p_at_sequence integer default null,
    p_user_id text default null,
    p_title text default null
)
returns chatledger.session_header
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_fork    chatledger.sessions;
    v_stored chatledger.sessions;
begin
    if p_new_session_id is null or char_length(p_new_session_id) not between 1 and 255 then
        perform chatledger_internal.raise_invalid_argument('new_session_id', 'must have 1 to 255 characters');
    end if;
    if p_at_sequence < 0 then
        perform chatledger_internal.raise_invalid_argument('at_sequence', 'must be 0 or more, or null for the whole session');
    end if;

    perform chatledger_internal.check_header_size(p_title, null, null);

    v_session := chatledger_internal.lock_session(p_session_id, p_user_id);

    v_fork.id := p_new_session_id;
    v_fork.user_id := v_session.user_id;
    v_fork.title := coalesce(p_title, v_session.title);
    v_fork.metadata := v_session.metadata;
    v_fork.status := v_session.status;
    v_fork.forked_from := p_session_id;
    v_fork.forked_at := p_at_sequence;
    v_fork.created_at := clock_timestamp();
    v_fork.updated_at := greatest(v_fork.created_at, v_session.updated_at);
    if chatledger_internal.insert_session(v_fork) then
        insert into chatledger.messages (
            session_id, sequence, message_id, role, content, content_parts, name, tool_call_id, refusal, tool_calls,
            function_call, metadata, duration_ms, extra, version, created_at)
        select
            p_new_session_id, row_number() over (order by m.sequence) - 1, m.message_id, m.role, m.content, m.content_parts,
            m.name, m.tool_call_id, m.refusal, m.tool_calls, m.function_call, m.metadata, m.duration_ms, m.extra, 1,
            m.created_at
        from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed and (p_at_sequence is null or m.sequence <= p_at_sequence);
    end if;

    v_stored := chatledger_internal.session_now(p_new_session_id, null);
    if v_stored.forked_from is distinct from p_session_id or v_stored.forked_at is distinct from p_at_sequence
        -- A fork of another user's session that had this id before it was purged.
        or v_stored.user_id is distinct from v_session.user_id
    then
        raise exception using
            errcode = 'CL010',
            message = format('session id "%s" is already used', p_new_session_id),
            detail = jsonb_build_object('session_id', p_new_session_id)::text,
            hint = 'Nothing was stored. Choose a new id for the fork.';
    end if;
    return chatledger_internal.header_of(v_stored);
end
$function$;

revoke all on function chatledger.fork_session(text, text, integer, text, text) from public;
grant execute on function chatledger.fork_session(text, text, integer, text, text) to chatledger_writer;
comment on function chatledger.fork_session(text, text, integer, text, text) is
    'Branches a session: a new one with a copy of its messages.';
