-- store_amended(p_message, p_body) -> bigint, the session's new version
-- Puts a new body into a stored message and advances the session. The hash of the body as it was appended stays, so that a
-- late retry of that append is still recognised. The caller holds the session's lock. Raises CL007.
create or replace function chatledger_internal.store_amended(p_message chatledger.messages, p_body jsonb)
returns bigint
language plpgsql
as $function$
declare
    v_problem text[] := chatledger_internal.message_problem(p_body);
    v_version bigint;
    v_watched timestamptz;
begin
    if v_problem is not null then
        raise exception using
            errcode = 'CL007',
            message = format('message "%s": %s %s', p_message.message_id, v_problem[1], v_problem[2]),
            detail = jsonb_build_object('message_id', p_message.message_id, 'field', v_problem[1],
                'problem', v_problem[2])::text,
            hint = 'Nothing was changed. Correct the change and call again.';
    end if;

    update chatledger.sessions as s
    set version = s.version + 1, updated_at = greatest(clock_timestamp(), s.updated_at)
    where s.id = p_message.session_id
    returning s.version, s.watched_until into v_version, v_watched;
    perform chatledger_internal.notify_followers(p_message.session_id, v_watched, v_version);

    update chatledger.messages as m
    set (role, content, content_parts, name, tool_call_id, refusal, tool_calls, function_call, metadata, duration_ms, extra)
            = (select field.role, field.content, field.content_parts, field.name, field.tool_call_id, field.refusal,
                field.tool_calls, field.function_call, field.metadata, field.duration_ms, field.extra
               from chatledger_internal.message_columns(p_body) as field),
        amended_version = v_version,
        original_hash = coalesce(m.original_hash, chatledger_internal.message_hash(chatledger.message_body(m)))
    where m.session_id = p_message.session_id and m.sequence = p_message.sequence;
    return v_version;
end
$function$;

comment on function chatledger_internal.store_amended(chatledger.messages, jsonb) is 'Writes an amended message.';
