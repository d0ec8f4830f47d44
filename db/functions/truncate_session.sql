-- truncate_session(p_session_id, p_from_sequence, p_user_id, p_expected_sequence, p_fence)
--     -> (removed, next_sequence, version), one row
--
-- Removes the messages from a sequence on, for "edit and regenerate". Their content is erased; their numbers and ids stay
-- taken: the next message goes on at next_sequence, and the retry of a removed message does not bring it back.
--
-- p_session_id         the session
-- p_from_sequence      the first message to remove
-- p_user_id            only if the session belongs to this user; null skips the check (a trusted caller)
-- p_expected_sequence  the session's next_sequence that the caller saw: refuses when somebody appended since
-- p_fence              the fence of the stream that writes
--
-- Idempotent: with p_expected_sequence; without it, a retry also removes what was appended in between.
-- Locks:      the session's row.
-- Writes:     messages, sessions.
-- Raises:     CL001 session not found, CL002 somebody appended since, CL005 stale fence, CL008 invalid argument; 40001.
-- Example:    select * from chatledger.truncate_session('s1', 4);
create or replace function chatledger.truncate_session(
    p_session_id text,
    p_from_sequence integer,
    p_user_id text default null,
    p_expected_sequence integer default null,
    p_fence bigint default null
)
returns table (removed integer, next_sequence integer, version bigint)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_removed integer;
begin
    if p_from_sequence is null or p_from_sequence < 0 then
        perform chatledger_internal.raise_invalid_argument('from_sequence', 'must be 0 or more');
    end if;

    v_session := chatledger_internal.lock_session(p_session_id, p_user_id, p_fence);

    if p_expected_sequence <> v_session.next_sequence then
        perform chatledger_internal.raise_sequence_conflict(p_session_id, v_session.version,
            v_session.next_sequence, p_expected_sequence);
    end if;

    update chatledger.messages as m
    set removed = true, amended_version = v_session.version + 1,
        original_hash = coalesce(m.original_hash, chatledger_internal.message_hash(chatledger.message_body(m))),
        content = null, content_parts = null, name = null, tool_call_id = null, refusal = null, tool_calls = null,
        function_call = null, metadata = null, duration_ms = null, extra = null
    where m.session_id = p_session_id and m.sequence >= p_from_sequence and not m.removed;
    get diagnostics v_removed = row_count;

    if v_removed > 0 then
        v_session.removed_count := v_session.removed_count + v_removed;
        v_session.version := v_session.version + 1;
        v_session.updated_at := greatest(clock_timestamp(), v_session.updated_at);
        perform chatledger_internal.advance_session(v_session);
    end if;
    return query select v_removed, v_session.next_sequence, v_session.version;
end
$function$;

revoke all on function chatledger.truncate_session(text, integer, text, integer, bigint) from public;
grant execute on function chatledger.truncate_session(text, integer, text, integer, bigint) to chatledger_writer;
comment on function chatledger.truncate_session(text, integer, text, integer, bigint) is
    'Removes the messages from a sequence on.';
