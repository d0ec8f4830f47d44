-- message_columns(p_message) -> the columns of chatledger.messages that hold a message's own fields
-- Takes a valid message apart; message_body puts it together again. Inlined by Postgres, into
-- the statement that appends: every part of it costs on every call, whether it is needed or not.
create or replace function chatledger_internal.message_columns(p_message jsonb)
returns table (
    role text, content text, content_parts jsonb, name text, tool_call_id text, refusal text, tool_calls jsonb,
    function_call jsonb, metadata jsonb, duration_ms integer, extra jsonb
)
language sql
immutable
as $function$
    select
        p_message ->> 'role',
        case jsonb_typeof(p_message -> 'content') when 'string' then p_message ->> 'content' end,
        case jsonb_typeof(p_message -> 'content') when 'array' then p_message -> 'content' end,
        p_message ->> 'name',
        p_message ->> 'tool_call_id',
        p_message ->> 'refusal',
        nullif(p_message -> 'tool_calls', 'null'),
        nullif(p_message -> 'function_call', 'null'),
        nullif(p_message -> 'metadata', 'null'),
        nullif(p_message -> 'duration_ms', 'null')::integer,
        case
            -- Nulls are rare; only they make it worth looking at every key.
            when p_message @? '$.* ? (@ == null)' then chatledger_internal.extra_with_nulls(p_message)
            else nullif(p_message - '{message_id,role,content,name,tool_call_id,refusal,tool_calls,function_call,'
                'metadata,duration_ms}'::text[], '{}')
        end
$function$;

comment on function chatledger_internal.message_columns(jsonb) is 'A message taken apart into columns.';
