-- get_messages(p_session_id, p_user_id, p_after, p_before, p_limit) -> messages in order of their sequence
--
-- A page of a session's messages, p_after and p_before excluded.
--
-- p_session_id  the session
-- p_user_id     only if the session belongs to this user; null skips the check (a trusted caller)
-- p_after       the first p_limit messages after it. The next page is p_after => its last sequence. A page that would end
--               among tool results goes on to the last of them, so that the next one does not start inside the group.
--               Null: the last p_limit messages before p_before. The page before that one is p_before => its first
--               sequence. A page that would start on a tool result reaches back to the assistant message that made the
--               call, so it can hold more than p_limit.
-- p_before      null: the newest
-- p_limit       null: no limit
--
-- Locks:      none.
-- Writes:     nothing.
-- Raises:     CL001 session not found, CL008 invalid argument.
-- Example:    select sequence, role, content from chatledger.get_messages('s1', p_limit => 20);
create or replace function chatledger.get_messages(
    p_session_id text,
    p_user_id text default null,
    p_after integer default null,
    p_before integer default null,
    p_limit integer default 100
)
returns table (
    sequence integer, message_id text, role text, content text, content_parts jsonb, name text, tool_call_id text,
    refusal text, tool_calls jsonb, function_call jsonb, metadata jsonb, duration_ms integer, extra jsonb,
    amended_version bigint, created_at timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $function$
#variable_conflict use_column
declare
    v_start bigint;  -- after the largest integer comes nothing, not an overflow
    v_end   bigint;
begin
    if p_limit < 1 then
        perform chatledger_internal.raise_invalid_argument('limit', 'must be 1 or more, or null for all');
    end if;
    if not exists (
        select from chatledger.sessions as s
        where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id))
    then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;

    if p_after is null then
        v_start := chatledger_internal.page_start(p_session_id, p_before, p_limit);
    else
        v_start := greatest(p_after, -1)::bigint + 1;
        if p_limit is not null then
            -- The first message after the page, past the tool results that belong to its last one.
            select m.sequence into v_end
            from chatledger.messages as m
            where m.session_id = p_session_id and not m.removed and m.role <> 'tool'
                and m.sequence >= (
                    select next_page.sequence
                    from chatledger.messages as next_page
                    where next_page.session_id = p_session_id and not next_page.removed
                        and next_page.sequence >= v_start
                    order by next_page.sequence
                    offset p_limit limit 1)
            order by m.sequence
            limit 1;
        end if;
    end if;
    v_end := coalesce(least(v_end, p_before), 2147483648);

    return query
        select m.sequence, m.message_id, m.role, m.content, m.content_parts, m.name, m.tool_call_id, m.refusal,
            m.tool_calls, m.function_call, m.metadata, m.duration_ms, m.extra, m.amended_version, m.created_at
        from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed
            and m.sequence >= v_start and m.sequence < v_end
        order by m.sequence;
end
$function$;

revoke all on function chatledger.get_messages(text, text, integer, integer, integer) from public;
grant execute on function chatledger.get_messages(text, text, integer, integer, integer)
    to chatledger_reader, chatledger_writer;
comment on function chatledger.get_messages(text, text, integer, integer, integer) is 'A page of a session''s messages.';
