-- add_tool_call(p_session_id, p_tool_call, p_user_id, p_message_id, p_fence)
--     -> (message_id, sequence, version, added), one row: the message that holds the call
--
-- Attaches a tool call to the current turn's last assistant message, past tool results; a user message is the boundary.
-- A turn without an assistant message gets one, with empty content.
--
-- p_session_id  the session
-- p_tool_call   {"id": …, "type": "function", "function": {"name": …, "arguments": …}}
-- p_user_id     only if the session belongs to this user; null skips the check (a trusted caller)
-- p_message_id  id for the message, if one has to be made; null: generated
-- p_fence       the fence of the stream that writes
--
-- Idempotent: a tool call id that was added before, or stands in the current turn, changes nothing; added = false.
-- Locks:      the session's row, so two callers who add a call each both succeed.
-- Writes:     messages, added_tool_calls, sessions.
-- Raises:     CL001 session not found, CL003 p_message_id is used, CL005 stale fence, CL007 invalid tool call; 40001.
-- Example:    select * from chatledger.add_tool_call('s1',
--                 '{"id": "call_1", "type": "function", "function": {"name": "search", "arguments": "{}"}}');
create or replace function chatledger.add_tool_call(
    p_session_id text,
    p_tool_call jsonb,
    p_user_id text default null,
    p_message_id text default null,
    p_fence bigint default null
)
returns table (message_id text, sequence integer, version bigint, added boolean)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_holder  chatledger.messages;
    v_message chatledger.messages;
    v_body    jsonb;
    v_problem text[];
    v_call_id text := p_tool_call ->> 'id';
begin
    v_problem := chatledger_internal.message_problem(jsonb_build_object('role', 'assistant',
        'tool_calls', jsonb_build_array(p_tool_call)));
    if v_problem is not null then
        raise exception using
            errcode = 'CL007',
            message = format('tool call: %s %s', v_problem[1], v_problem[2]),
            detail = jsonb_build_object('field', v_problem[1], 'problem', v_problem[2])::text,
            hint = 'Nothing was stored. A tool call has an id and a function with a name.';
    end if;
    if char_length(v_call_id) > 255 then
        perform chatledger_internal.raise_invalid_argument('tool_call.id', 'must have 1 to 255 characters');
    end if;

    v_session := chatledger_internal.lock_session(p_session_id, p_user_id, p_fence);

    -- Added before, be it many turns ago: the same answer again.
    select m.* into v_message
    from chatledger.added_tool_calls as added
    join chatledger.messages as m using (session_id, message_id)
    where added.session_id = p_session_id and added.tool_call_id = v_call_id;
    if found then
        return query select v_message.message_id, v_message.sequence, v_session.version, false;
        return;
    end if;

    -- Walk back through the turn only, not through the session.
    for v_message in
        select m.* from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed
        order by m.sequence desc
    loop
        exit when v_message.role = 'user';
        if v_message.tool_calls @> jsonb_build_array(jsonb_build_object('id', v_call_id)) then
            return query select v_message.message_id, v_message.sequence, v_session.version, false;
            return;
        end if;
        if v_message.role = 'assistant' and v_holder.sequence is null then
            v_holder := v_message;
        end if;
    end loop;

    if v_holder.sequence is null then
        select receipt.message_id, receipt.sequence
        into v_holder.message_id, v_holder.sequence
        from chatledger.append_messages(
            p_session_id,
            array[jsonb_build_object('message_id', coalesce(p_message_id, gen_random_uuid()::text),
                'role', 'assistant', 'content', '', 'tool_calls', jsonb_build_array(p_tool_call))]
        ) as receipt;
    else
        v_body := chatledger.message_body(v_holder);
        v_body := v_body || jsonb_build_object('tool_calls',
            coalesce(nullif(v_body -> 'tool_calls', 'null'), '[]') || jsonb_build_array(p_tool_call));
        perform chatledger_internal.store_amended(v_session, v_holder, v_body);
    end if;

    insert into chatledger.added_tool_calls (session_id, tool_call_id, message_id)
    values (p_session_id, v_call_id, v_holder.message_id);

    return query select v_holder.message_id, v_holder.sequence, v_session.version + 1, true;
end
$function$;

revoke all on function chatledger.add_tool_call(text, jsonb, text, text, bigint) from public;
grant execute on function chatledger.add_tool_call(text, jsonb, text, text, bigint) to chatledger_writer;
comment on function chatledger.add_tool_call(text, jsonb, text, text, bigint) is
    'Attaches a tool call to the current turn''s assistant message, exactly once.';
