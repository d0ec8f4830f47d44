-- check_changes(p_header, p_amendments, p_usage) -> void
-- Refuses what save_session cannot take apart: CL008; its argument is "header", "amendments" or "usage".
create or replace function chatledger_internal.check_changes(p_header jsonb, p_amendments jsonb[], p_usage jsonb[])
returns void
language plpgsql
immutable
as $function$
begin
    if jsonb_typeof(p_header) <> 'object'
        or p_header @? 'strict $.* ? (@.type() <> "object")'
        or p_header @? 'lax $.title.keyvalue() ? (@.value.type() <> "string" && @.value <> null)'
        or p_header @? 'lax $.status.keyvalue() ? (@.value.type() <> "string" && @.value <> null)'
        or p_header @? 'lax $.pinned.keyvalue() ? (@.value.type() <> "boolean" && @.value <> null)'
        or p_header -> 'metadata' @? 'strict $.* ? (@.type() <> "object")'
    then
        perform chatledger_internal.raise_invalid_argument('header', 'must be an object of changes {"from", "to"}: of "title" and '
            '"status" (strings), "pinned" (a boolean), and "metadata", an object of changes of its keys');
    end if;

    if p_amendments is null or array_ndims(p_amendments) > 1 or exists (
        select from unnest(p_amendments) as given (amendment)
        where coalesce(jsonb_typeof(amendment), '') <> 'object'
            or coalesce(jsonb_typeof(amendment -> 'message_id'), '') <> 'string'
            or jsonb_typeof(amendment -> 'fields') <> 'object'
            or amendment -> 'fields' @? 'strict $.* ? (@.type() <> "object")'
            or jsonb_typeof(amendment -> 'metadata') <> 'object'
            or amendment -> 'metadata' @? 'strict $.* ? (@.type() <> "object")'
            or jsonb_typeof(amendment -> 'add_tool_calls') <> 'array')
    then
        perform chatledger_internal.raise_invalid_argument('amendments', 'must be a plain array of objects with a "message_id", '
            '"fields" and "metadata" (objects of changes {"from", "to"}) and "add_tool_calls" (a list)');
    end if;

    if p_usage is null or array_ndims(p_usage) > 1 or exists (
        select from unnest(p_usage) as given (used)
        where coalesce(jsonb_typeof(used -> 'usage_id'), '') <> 'string'
            or coalesce(used ->> 'prompt_tokens', '') !~ '^-?[0-9]{1,13}$'
            or coalesce(used ->> 'completion_tokens', '') !~ '^-?[0-9]{1,13}$'
            or used ->> 'total_tokens' !~ '^-?[0-9]{1,13}$')
    then
        perform chatledger_internal.raise_invalid_argument('usage', 'must be a plain array of objects with a "usage_id" (a string), '
            '"prompt_tokens", "completion_tokens" and "total_tokens" (whole numbers)');
    end if;
end
$function$;

comment on function chatledger_internal.check_changes(jsonb, jsonb[], jsonb[]) is 'Refuses changes that save_session cannot take apart.';
