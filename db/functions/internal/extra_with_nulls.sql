-- extra_with_nulls(p_message) -> jsonb
-- What message_columns has no column for, in a message that has a null: every key it does not know, and each null. A function of
-- its own, since a subquery would be set up for every append.
create or replace function chatledger_internal.extra_with_nulls(p_message jsonb)
returns jsonb
language plpgsql
immutable
as $function$
begin
    return (
        select jsonb_object_agg(field.key, field.value)
        from jsonb_each(p_message) as field
        where field.value = 'null'
            or field.key not in ('message_id', 'role', 'content', 'name', 'tool_call_id', 'refusal', 'tool_calls',
                'function_call', 'metadata', 'duration_ms'));
end
$function$;

comment on function chatledger_internal.extra_with_nulls(jsonb) is 'Unknown keys and nulls of a message.';
