-- raise_amended_since(p_message, p_expected_version, p_field) -> never returns
-- CL004: somebody changed the message, or this field of it, since the caller read it.
create or replace function chatledger_internal.raise_amended_since(
    p_message chatledger.messages,
    p_expected_version bigint,
    p_field text default null
)
returns void
language plpgsql
immutable
as $function$
begin
    raise exception using
        errcode = 'CL004',
        message = format('message "%s" is not as you read it at version %s%s', p_message.message_id, p_expected_version,
            ': it was amended at version ' || p_message.amended_version),
        detail = jsonb_strip_nulls(jsonb_build_object('session_id', p_message.session_id,
            'message_id', p_message.message_id, 'field', p_field, 'expected_version', p_expected_version,
            'amended_version', p_message.amended_version))::text,
        hint = 'Nothing was changed. Read the message again, then decide what yours should become.';
end
$function$;

comment on function chatledger_internal.raise_amended_since(chatledger.messages, bigint, text) is 'Raises CL004.';
