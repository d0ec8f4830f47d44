-- store_amended(p_session, p_message, p_body) -> chatledger.sessions, with its new version
-- Puts a new body into a stored message and counts the session on. The hash of the body as it was appended stays, so that a
-- late retry of that append is still recognised. The caller holds the session's lock.
-- Writes: sessions, messages.
-- Raises: CL007.
create or replace function chatledger_internal.store_amended(
    p_session chatledger.sessions,
    p_message chatledger.messages,
    p_body jsonb
)
returns chatledger.sessions
language plpgsql
as $function$
declare
    v_session chatledger.sessions := p_session;
    v_problem text[] := chatledger_internal.message_problem(p_body);
    v_hash    bytea := coalesce(p_message.original_hash,
        chatledger_internal.message_hash(chatledger.message_body(p_message)));
begin
    if v_problem is not null then
        raise exception using
            errcode = 'CL007',
            message = format('message "%s": %s %s', p_message.message_id, v_problem[1], v_problem[2]),
            detail = jsonb_build_object('message_id', p_message.message_id, 'field', v_problem[1],
                'problem', v_problem[2])::text,
            hint = 'Nothing was changed. Correct the change and call again.';
    end if;

    v_session.version := p_session.version + 1;
    v_session.updated_at := greatest(clock_timestamp(), p_session.updated_at);
    perform chatledger_internal.advance_session(v_session);

    update chatledger.messages as m
    set (role, content, content_parts, name, tool_call_id, refusal, tool_calls, function_call, metadata, duration_ms, extra)
            = (select field.role, field.content, field.content_parts, field.name, field.tool_call_id, field.refusal,
                field.tool_calls, field.function_call, field.metadata, field.duration_ms, field.extra
               from chatledger_internal.message_columns(p_body) as field),
        amended_version = v_session.version,
        original_hash = v_hash
    where m.session_id = p_message.session_id and m.message_id = p_message.message_id;
    return v_session;
end
$function$;

comment on function chatledger_internal.store_amended(chatledger.sessions, chatledger.messages, jsonb) is
    'Writes an amended message.';
