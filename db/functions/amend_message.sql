-- amend_message(p_session_id, p_message_id, p_patch, p_expected_version, p_user_id, p_fence)
--     -> (message_id, sequence, version, amended), one row
--
-- Changes a stored message: each key of the patch replaces that field, null removes it; "metadata" is merged key by key.
--
-- p_session_id        the session
-- p_message_id        the message
-- p_patch             an object; "role" and "message_id" cannot change
-- p_expected_version  the session's version at which the caller read the message: refuses when it was amended since;
--                     null: amend whatever is there
-- p_user_id           only if the session belongs to this user; null skips the check (a trusted caller)
-- p_fence             the fence of the stream that writes
--
-- Returns:    the session's version after the amendment; amended is false when the message already was like that.
-- Idempotent: the same patch again changes nothing and is not refused.
-- Locks:      the session's row.
-- Writes:     messages, sessions.
-- Raises:     CL001 session not found, CL004 amended since, CL005 stale fence, CL007 the patched message is invalid,
--             CL008 invalid argument, CL009 message not found; 40001.
-- Example:    select * from chatledger.amend_message('s1', 'm1', '{"content": "hello"}');
create or replace function chatledger.amend_message(
    p_session_id text,
    p_message_id text,
    p_patch jsonb,
    p_expected_version bigint default null,
    p_user_id text default null,
    p_fence bigint default null
)
returns table (message_id text, sequence integer, version bigint, amended boolean)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_message chatledger.messages;
    v_body    jsonb;
    v_patched jsonb;
begin
    if jsonb_typeof(p_patch) is distinct from 'object' then
        perform chatledger_internal.raise_invalid_argument('patch', 'must be a JSON object');
    end if;
    if p_patch ?| '{message_id,role}' then
        perform chatledger_internal.raise_invalid_argument('patch', 'cannot change message_id or role');
    end if;

    v_session := chatledger_internal.lock_session(p_session_id, p_user_id, p_fence);
    v_message := chatledger_internal.stored_message(p_session_id, p_message_id);
    v_body := chatledger.message_body(v_message);
    v_patched := chatledger_internal.patched_body(v_body, p_patch);

    -- Already so: a retry, or somebody had the same wish. Nothing is lost, so nothing is refused.
    if v_patched = v_body then
        return query select v_message.message_id, v_message.sequence, v_session.version, false;
        return;
    end if;
    if v_message.amended_version > p_expected_version then
        perform chatledger_internal.raise_amended_since(v_message, p_expected_version);
    end if;

    v_session := chatledger_internal.store_amended(v_session, v_message, v_patched);
    return query select v_message.message_id, v_message.sequence, v_session.version, true;
end
$function$;

revoke all on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) from public;
grant execute on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) to chatledger_writer;
comment on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) is
    'Changes a stored message; refuses when somebody changed it since.';
