-- page_start(p_session_id, p_before, p_limit) -> integer
-- Sequence at which the page of the last p_limit messages before p_before (null: the end) starts. A page that would start
-- on a tool result reaches back to the assistant message that made the call. Null when there is no message.
create or replace function chatledger_internal.page_start(p_session_id text, p_before integer, p_limit integer)
returns integer
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_first chatledger.messages;
    v_owner integer;
begin
    select page.* into v_first
    from (
        select m.*
        from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed and m.sequence < coalesce(p_before, 2147483648)
        order by m.sequence desc
        limit p_limit
    ) as page
    order by page.sequence
    limit 1;

    if v_first.role = 'tool' then
        select m.sequence into v_owner
        from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed and m.sequence < v_first.sequence and m.role = 'assistant'
            and m.tool_calls @> jsonb_build_array(jsonb_build_object('id', v_first.tool_call_id))
        order by m.sequence desc
        limit 1;
    end if;
    return coalesce(v_owner, v_first.sequence);
end
$function$;

comment on function chatledger_internal.page_start(text, integer, integer) is 'Where a page of messages starts.';
