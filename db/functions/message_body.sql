-- message_body(p_message) -> jsonb
--
-- The message as it came in, without its message_id: in OpenAI's chat format, unknown keys and nulls included. Its functions are
-- qualified: it runs as the caller, with the caller's search_path, since with one of its own it would not be inlined.
--
-- p_message  a row of chatledger.messages
--
-- Locks:      none.
-- Writes:     nothing.
-- Raises:     nothing.
-- Example:    select sequence, chatledger.message_body(m) from chatledger.messages m where session_id = 's1' order by 1;
create or replace function chatledger.message_body(p_message chatledger.messages)
returns jsonb
language sql
stable
as $function$
    select pg_catalog.jsonb_object_agg(field.key, field.value) || coalesce(p_message.extra, '{}')
    from (values
        ('role', pg_catalog.to_jsonb(p_message.role)),
        ('content', coalesce(pg_catalog.to_jsonb(p_message.content), p_message.content_parts)),
        ('name', pg_catalog.to_jsonb(p_message.name)),
        ('tool_call_id', pg_catalog.to_jsonb(p_message.tool_call_id)),
        ('refusal', pg_catalog.to_jsonb(p_message.refusal)),
        ('tool_calls', p_message.tool_calls),
        ('function_call', p_message.function_call),
        ('metadata', p_message.metadata),
        ('duration_ms', pg_catalog.to_jsonb(p_message.duration_ms))
    ) as field (key, value)
    where field.value is not null
$function$;

revoke all on function chatledger.message_body(chatledger.messages) from public;
grant execute on function chatledger.message_body(chatledger.messages) to chatledger_reader, chatledger_writer;
comment on function chatledger.message_body(chatledger.messages) is 'A stored message as JSON, as it came in.';
