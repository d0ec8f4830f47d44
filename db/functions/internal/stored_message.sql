-- stored_message(p_session_id, p_message_id) -> chatledger.messages
-- A message of the session that was not removed. Raises CL009.
create or replace function chatledger_internal.stored_message(p_session_id text, p_message_id text)
returns chatledger.messages
language plpgsql
stable
as $function$
declare
    v_message chatledger.messages;
begin
    select m.* into v_message
    from chatledger.messages as m
    where m.session_id = p_session_id and m.message_id = p_message_id and not m.removed;
    if not found then
        raise exception using
            errcode = 'CL009',
            message = format('message "%s" not found in session "%s"', p_message_id, p_session_id),
            detail = jsonb_build_object('session_id', p_session_id, 'message_id', p_message_id)::text,
            hint = 'It was never appended, or truncate_session removed it.';
    end if;
    return v_message;
end
$function$;

comment on function chatledger_internal.stored_message(text, text) is 'A stored message, or CL009.';
