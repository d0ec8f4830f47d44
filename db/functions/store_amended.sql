-- store_amended(p_message, p_body, p_version) -> void
-- Puts a new body into a stored message. The hash of the body as it was appended stays, so that a late retry of that
-- append is still recognised. The caller holds the session's lock and advances its version to p_version. Internal.
create or replace function chatledger.store_amended(p_message chatledger.messages, p_body jsonb, p_version bigint)
returns void
language sql
as $function$
    update chatledger.messages as m
    set (role, content, content_parts, name, tool_call_id, refusal, tool_calls, function_call, metadata, duration_ms, extra)
            = (select field.role, field.content, field.content_parts, field.name, field.tool_call_id, field.refusal,
                field.tool_calls, field.function_call, field.metadata, field.duration_ms, field.extra
               from chatledger.message_columns(p_body) as field),
        amended_version = p_version,
        original_hash = coalesce(m.original_hash, chatledger.message_hash(chatledger.message_body(m)))
    where m.session_id = p_message.session_id and m.sequence = p_message.sequence
$function$;

revoke all on function chatledger.store_amended(chatledger.messages, jsonb, bigint) from public;
comment on function chatledger.store_amended(chatledger.messages, jsonb, bigint) is 'Internal: writes an amended message.';
