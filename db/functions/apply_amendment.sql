-- apply_amendment(p_session_id, p_amendment, p_read_version) -> boolean, whether the message changed
-- One amendment of save_session, which says what it is, to a message that the caller read at that version of the session. The caller holds the session's lock. Internal.
-- Raises: CL004 amended since, CL007 invalid message, CL009 message not found.
create or replace function chatledger.apply_amendment(p_session_id text, p_amendment jsonb, p_read_version bigint)
returns boolean
language plpgsql
as $function$
declare
    v_message  chatledger.messages;
    v_body     jsonb;
    v_patched  jsonb;
    v_patch    jsonb;
    v_field    text;
begin
    v_message := chatledger.stored_message(p_session_id, p_amendment ->> 'message_id');
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
    where change.stored is distinct from nullif(change.value -> 'from', 'null')
        and change.stored is distinct from nullif(change.value -> 'to', 'null')
    limit 1;
    if found then
        perform chatledger.raise_amended_since(v_message, p_read_version, v_field);
    end if;

    select coalesce(jsonb_object_agg(field.key, coalesce(field.value -> 'to', 'null')), '{}') into v_patch
    from jsonb_each(p_amendment -> 'fields') as field;
    if p_amendment ? 'metadata' then
        v_patch := v_patch || jsonb_build_object('metadata', (
            select jsonb_object_agg(field.key, coalesce(field.value -> 'to', 'null'))
            from jsonb_each(p_amendment -> 'metadata') as field));
    end if;
    v_patched := chatledger.patched_body(v_body, v_patch);

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
        return false;
    end if;
    perform chatledger.store_amended(v_message, v_patched);
    return true;
end
$function$;

revoke all on function chatledger.apply_amendment(text, jsonb, bigint) from public;
comment on function chatledger.apply_amendment(text, jsonb, bigint) is 'Internal: one amendment of save_session.';
