-- amend_message(p_session_id, p_message_id, p_patch, p_expected_version, p_user_id, p_fence)
--     -> (message_id, sequence, version, amended), one row
--
-- Changes a stored message: each key of the patch replaces that field, null removes it; "metadata" is merged key by key.
--
-- p_patch             an object; "role" and "message_id" cannot change
-- p_expected_version  the session's version at which the caller read the message: refuses when it was amended since;
--                     null: amend whatever is there
--
-- version is the session's version after the amendment; amended is false when the message already was like that.
-- Idempotent: the same patch again changes nothing and is not refused.
-- Lock:   the session's row.
-- Raises: CL001 session not found, CL004 amended since, CL005 stale fence, CL007 the patched message is invalid,
--         CL008 invalid argument, CL009 message not found; 40001.
-- Example: select * from chatledger.amend_message('s1', 'm1', '{"content": "hello"}');
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
    v_problem text[];
begin
    if jsonb_typeof(p_patch) is distinct from 'object' then
        perform chatledger.raise_invalid_argument('patch', 'must be a JSON object');
    end if;
    if p_patch ?| '{message_id,role}' then
        perform chatledger.raise_invalid_argument('patch', 'cannot change message_id or role');
    end if;
    if jsonb_typeof(p_patch -> 'metadata') not in ('object', 'null') then
        v_problem := array['metadata', 'must be an object'];
    end if;

    v_session := chatledger.lock_session(p_session_id, p_user_id, p_fence);

    select m.* into v_message
    from chatledger.messages as m
    where m.session_id = p_session_id and m.message_id = p_message_id and not m.removed;
    if not found then
        raise exception using
            errcode = 'CL009',
            message = format('message "%s" not found in session "%s"', p_message_id, p_session_id),
            detail = jsonb_build_object('session_id', p_session_id, 'message_id', p_message_id)::text,
            hint = 'It was never appended, or truncate_session removed it.';
    end if;

    if v_problem is null then
        v_body := chatledger.message_body(v_message);
        v_patched := chatledger.merge_keys(v_body, p_patch);
        if jsonb_typeof(p_patch -> 'metadata') = 'object' then
            v_patched := v_patched || jsonb_build_object('metadata',
                chatledger.merge_keys(v_body -> 'metadata', p_patch -> 'metadata'));
        end if;
        v_problem := chatledger.message_problem(v_patched);
    end if;
    if v_problem is not null then
        raise exception using
            errcode = 'CL007',
            message = format('message "%s": %s %s', p_message_id, v_problem[1], v_problem[2]),
            detail = jsonb_build_object('message_id', p_message_id, 'field', v_problem[1], 'problem', v_problem[2])::text,
            hint = 'Nothing was changed. Correct the patch and call again.';
    end if;

    -- Already so: a retry, or somebody had the same wish. Nothing is lost, so nothing is refused.
    if v_patched = v_body then
        return query select v_message.message_id, v_message.sequence, v_session.version, false;
        return;
    end if;

    if v_message.amended_version > p_expected_version then
        raise exception using
            errcode = 'CL004',
            message = format('message "%s" was amended since: at version %s, and you read version %s',
                p_message_id, v_message.amended_version, p_expected_version),
            detail = jsonb_build_object('session_id', p_session_id, 'message_id', p_message_id,
                'expected_version', p_expected_version, 'amended_version', v_message.amended_version)::text,
            hint = 'Nothing was changed. Read the message again, then decide what yours should become.';
    end if;

    perform chatledger.store_amended(v_message, v_patched, v_session.version + 1);

    update chatledger.sessions as s
    set version = s.version + 1, updated_at = greatest(clock_timestamp(), s.updated_at)
    where s.id = p_session_id;

    return query select v_message.message_id, v_message.sequence, v_session.version + 1, true;
end
$function$;

revoke all on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) from public;
grant execute on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) to chatledger_writer;
comment on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) is
    'Changes a stored message; refuses when somebody changed it since.';
