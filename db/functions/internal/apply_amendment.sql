-- apply_amendment(p_session, p_amendment, p_read_version) -> chatledger.sessions, with a new version if the message changed
-- One amendment of save_session, which says what it is, to a message that the caller read at that version of the session.
-- The caller holds the session's lock.
-- Writes: sessions, messages.
-- Raises: CL004 amended since, CL007 invalid message, CL009 message not found.
create or replace function chatledger_internal.apply_amendment(
    p_session chatledger.sessions,
    p_amendment jsonb,
    p_read_version bigint
)
returns chatledger.sessions
language plpgsql
as $function$
declare
    v_message  chatledger.messages;
    v_body     jsonb;
    v_patched  jsonb;
    v_field    text;
begin
    v_message := chatledger_internal.stored_message(p_session.id, p_amendment ->> 'message_id');
    v_field := case when p_amendment -> 'fields' ? 'role' then 'role'
        when p_amendment -> 'fields' ? 'message_id' then 'message_id' end;
    if v_field is not null then
        raise exception using
            errcode = 'CL007',
            message = format('message "%s": %s cannot change', v_message.message_id, v_field),
            detail = jsonb_build_object('message_id', v_message.message_id, 'field', v_field,
                'problem', 'cannot change')::text,
            hint = 'Nothing was changed. Append a new message instead.';
    end if;
    v_body := chatledger.message_body(v_message);

    -- What is neither as the caller saw it nor as it wants it, somebody else changed.
    select change.key into v_field
    from (
        select field.key, nullif(v_body -> field.key, 'null') as stored, field.value
        from jsonb_each(p_amendment -> 'fields') as field
        union all
        select 'metadata.' || field.key, nullif(v_body -> 'metadata' -> field.key, 'null'), field.value
        from jsonb_each(p_amendment -> 'metadata') as field
    ) as change
    where not chatledger_internal.same_value(change.stored, nullif(change.value -> 'from', 'null'))
        and not chatledger_internal.same_value(change.stored, nullif(change.value -> 'to', 'null'))
    limit 1;
    if found then
        perform chatledger_internal.raise_amended_since(v_message, p_read_version, v_field);
    end if;

    v_patched := chatledger_internal.apply_changes(v_body, p_amendment -> 'fields');
    if p_amendment ? 'metadata' then
        v_patched := v_patched || jsonb_build_object('metadata',
            chatledger_internal.apply_changes(nullif(v_patched -> 'metadata', 'null'), p_amendment -> 'metadata'));
    end if;

    if p_amendment ? 'add_tool_calls' then
        v_patched := v_patched || jsonb_build_object('tool_calls',
            coalesce(nullif(v_patched -> 'tool_calls', 'null'), '[]') || coalesce((
                select jsonb_agg(added.call order by added.position)
                from (
                    select distinct on (given.call -> 'id') given.call, given.position
                    from jsonb_array_elements(p_amendment -> 'add_tool_calls') with ordinality as given (call, position)
                    order by given.call -> 'id', given.position
                ) as added
                where not coalesce(v_patched -> 'tool_calls'
                    @> jsonb_build_array(jsonb_build_object('id', added.call -> 'id')), false)
            ), '[]'));
    end if;

    if v_patched = v_body then
        return p_session;
    end if;
    return chatledger_internal.store_amended(p_session, v_message, v_patched);
end
$function$;

comment on function chatledger_internal.apply_amendment(chatledger.sessions, jsonb, bigint) is 'One amendment of save_session.';
