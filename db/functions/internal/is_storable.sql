-- is_storable(p_message) -> boolean
-- Whether a message can be stored; what is wrong with one that cannot, message_problem says. Null for null.
-- One path instead of an expression for each rule, since Postgres sets up every expression of a statement on every call.
create or replace function chatledger_internal.is_storable(p_message jsonb)
returns boolean
language sql
immutable
as $function$
    -- Lax: a key that is missing is of no type at all. type() does not look into arrays, comparisons do: so the type first.
    select p_message @@ '
        $.type() == "object"
        && $.role.type() == "string"
        && ($.role == "user" || $.role == "assistant" || $.role == "system" || $.role == "developer"
            || $.role == "function" || $.role == "tool" && $.tool_call_id.type() == "string" && $.tool_call_id != "")
        && !($.message_id.type() != "string" || $.message_id == "")
        && !($.content.type() != "string" && $.content.type() != "null"
            && ($.content.type() != "array" || $.content[*].type() != "object"))
        && !($.tool_call_id.type() != "string" && $.tool_call_id.type() != "null")
        && !($.tool_calls.type() != "null" && ($.tool_calls.type() != "array" || $.tool_calls[*].type() != "object"
            || exists($.tool_calls[*] ? (
                !(@.id.type() == "string" && @.id != "")
                || !(@.function.type() == "object" && @.function.name.type() == "string" && @.function.name != ""
                    || @.custom.type() == "object" && @.custom.name.type() == "string" && @.custom.name != "")))))
        && !($.function_call.type() != "object" && $.function_call.type() != "null")
        && !($.name.type() != "string" && $.name.type() != "null")
        && !($.refusal.type() != "string" && $.refusal.type() != "null")
        && !($.metadata.type() != "object" && $.metadata.type() != "null")
        && !($.duration_ms.type() != "null" && !($.duration_ms.type() == "number" && $.duration_ms >= 0
            && $.duration_ms <= 2147483647 && $.duration_ms == $.duration_ms.floor()))'
        and coalesce(char_length(p_message ->> 'message_id') <= 255, true)
        and chatledger_internal.json_problem(p_message) is null
$function$;

comment on function chatledger_internal.is_storable(jsonb) is 'Whether a message can be stored.';
