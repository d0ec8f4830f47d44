-- fork_session(p_session_id, p_new_session_id, p_at_sequence, p_user_id, p_title) -> chatledger.session_header of the fork
--
-- Branches a session: a new one with the same owner and metadata and a copy of the messages up to and including
-- p_at_sequence (null: all), numbered anew from 0. Message ids and times are kept, usage is not.
--
-- p_title  the fork's title; null: the session's
--
-- Idempotent: the same fork again returns it as it is.
-- Raises: CL001 session not found, CL008 invalid argument, CL010 the new id is already used; 40001.
-- Example: select * from chatledger.fork_session('s1', 's1-other-answer', 3);
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
    v_count   integer;
begin
    if p_new_session_id is null or char_length(p_new_session_id) not between 1 and 255 then
        perform chatledger_internal.raise_invalid_argument('new_session_id', 'must have 1 to 255 characters');
    end if;
    if p_at_sequence < 0 then
        perform chatledger_internal.raise_invalid_argument('at_sequence', 'must be 0 or more, or null for the whole session');
    end if;

    -- The lock keeps header and messages of one moment.
    v_session := chatledger_internal.lock_session(p_session_id, p_user_id);

    insert into chatledger.sessions as s (
        id, user_id, title, metadata, status, forked_from, forked_at, created_at, updated_at)
    values (
        p_new_session_id, v_session.user_id, coalesce(p_title, v_session.title), v_session.metadata, v_session.status,
        p_session_id, p_at_sequence, clock_timestamp(), greatest(clock_timestamp(), v_session.updated_at))
    on conflict (id) do nothing
    returning s.* into v_fork;

    if not found then
        select s.* into v_fork
        from chatledger.sessions as s
        where s.id = p_new_session_id and chatledger_internal.is_visible(s.deleted_at, null, null) and s.forked_from = p_session_id
            and s.forked_at is not distinct from p_at_sequence
            -- Not a fork of another user's session that had this id before it was purged.
            and s.user_id is not distinct from v_session.user_id;
        if not found then
            raise exception using
                errcode = 'CL010',
                message = format('session id "%s" is already used', p_new_session_id),
                detail = jsonb_build_object('session_id', p_new_session_id)::text,
                hint = 'Nothing was stored. Choose a new id for the fork.';
        end if;
        return chatledger_internal.header_of(v_fork);
    end if;

    insert into chatledger.messages (
        session_id, sequence, message_id, role, content, content_parts, name, tool_call_id, refusal, tool_calls,
        function_call, metadata, duration_ms, extra, created_at)
    select
        p_new_session_id, row_number() over (order by m.sequence) - 1, m.message_id, m.role, m.content, m.content_parts,
        m.name, m.tool_call_id, m.refusal, m.tool_calls, m.function_call, m.metadata, m.duration_ms, m.extra, m.created_at
    from chatledger.messages as m
    where m.session_id = p_session_id and not m.removed and (p_at_sequence is null or m.sequence <= p_at_sequence);
    get diagnostics v_count = row_count;

    update chatledger.sessions as s
    set next_sequence = v_count
    where s.id = p_new_session_id
    returning s.* into v_fork;
    return chatledger_internal.header_of(v_fork);
end
$function$;

revoke all on function chatledger.fork_session(text, text, integer, text, text) from public;
grant execute on function chatledger.fork_session(text, text, integer, text, text) to chatledger_writer;
comment on function chatledger.fork_session(text, text, integer, text, text) is
    'Branches a session: a new one with a copy of its messages.';
