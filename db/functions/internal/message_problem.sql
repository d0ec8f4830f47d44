-- message_problem(p_message) -> text[]
-- What is wrong with a message: array[field, problem], or null when it can be stored. Never quotes the message's
-- content, since problems end in logs. Says why what is_storable, the same rule, has refused.
create or replace function chatledger_internal.message_problem(p_message jsonb)
returns text[]
language sql
immutable
as $function$
    select case
        when p_message is null then
            array['', 'is null; expected a JSON object']
        when jsonb_typeof(p_message) <> 'object' then
            array['', 'is a JSON ' || jsonb_typeof(p_message) || '; expected an object']
        when not p_message ? 'role' then
            array['role', 'is missing']
        when jsonb_typeof(p_message -> 'role') <> 'string'
            or not p_message ->> 'role' = any ('{system,developer,user,assistant,tool,function}') then
            array['role', 'is unknown; expected system, developer, user, assistant, tool or function']
        when p_message ? 'message_id' and (jsonb_typeof(p_message -> 'message_id') <> 'string'
            or char_length(p_message ->> 'message_id') not between 1 and 255) then
            array['message_id', 'must be a string of 1 to 255 characters']
        when p_message ? 'content' and jsonb_typeof(p_message -> 'content') not in ('string', 'null')
            and not (jsonb_typeof(p_message -> 'content') = 'array'
                and not p_message -> 'content' @? 'strict $[*] ? (@.type() <> "object")') then
            array['content', 'must be a string, a list of objects or null']
        when p_message ->> 'role' = 'tool' and (not p_message ? 'tool_call_id'
            or jsonb_typeof(p_message -> 'tool_call_id') <> 'string' or p_message ->> 'tool_call_id' = '') then
            array['tool_call_id', 'is missing: a tool message names the call that it answers']
        when p_message ? 'tool_call_id' and jsonb_typeof(p_message -> 'tool_call_id') not in ('string', 'null') then
            array['tool_call_id', 'must be a string']
        when p_message ? 'tool_calls' and jsonb_typeof(p_message -> 'tool_calls') <> 'null'
            and not (jsonb_typeof(p_message -> 'tool_calls') = 'array'
                and not p_message -> 'tool_calls' @? 'strict $[*] ? (@.type() <> "object")') then
            array['tool_calls', 'must be a list of objects']
        -- Strict paths, since lax ones look into arrays; counted, since in strict mode a missing key is neither true nor
        -- false.
        when jsonb_typeof(p_message -> 'tool_calls') = 'array'
            and jsonb_array_length(p_message -> 'tool_calls') > jsonb_array_length(jsonb_path_query_array(
                p_message -> 'tool_calls', 'strict $[*] ? (@.id.type() == "string" && @.id <> "")')) then
            array['tool_calls', 'has a tool call without an id']
        when jsonb_typeof(p_message -> 'tool_calls') = 'array'
            and jsonb_array_length(p_message -> 'tool_calls') > jsonb_array_length(jsonb_path_query_array(
                p_message -> 'tool_calls', 'strict $[*] ? (@.function.name.type() == "string" && @.function.name <> ""
                    || @.custom.name.type() == "string" && @.custom.name <> "")')) then
            array['tool_calls', 'has a tool call without a function name']
        when p_message ? 'function_call' and jsonb_typeof(p_message -> 'function_call') not in ('object', 'null') then
            array['function_call', 'must be an object']
        when p_message ? 'name' and jsonb_typeof(p_message -> 'name') not in ('string', 'null') then
            array['name', 'must be a string']
        when p_message ? 'refusal' and jsonb_typeof(p_message -> 'refusal') not in ('string', 'null') then
            array['refusal', 'must be a string']
        when p_message ? 'metadata' and jsonb_typeof(p_message -> 'metadata') not in ('object', 'null') then
            array['metadata', 'must be an object']
        when p_message ? 'duration_ms' and jsonb_typeof(p_message -> 'duration_ms') <> 'null'
            and not p_message -> 'duration_ms' @? 'strict $ ? (@ >= 0 && @ <= 2147483647 && @ == @.floor())' then
            array['duration_ms', 'must be a whole number of milliseconds']
        when chatledger_internal.json_problem(p_message) is not null then
            array[coalesce(jsonb_path_query_first(p_message, 'strict $.keyvalue() ? (exists (@.value.**{100})
                    || exists (@.value.** ? (@ >= 1e1000 || @ <= -1e1000))).key') #>> '{}', ''),
                chatledger_internal.json_problem(p_message)]
    end
$function$;

comment on function chatledger_internal.message_problem(jsonb) is 'What is wrong with a message, or null.';
