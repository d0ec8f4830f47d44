-- check_messages(p_messages) -> void
-- Refuses an array that cannot be stored whole.
-- Raises: CL007 (a bad message; DETAIL has its index and field), CL008 (not a one-dimensional array), CL014 (too many).
create or replace function chatledger_internal.check_messages(p_messages jsonb[])
returns void
language plpgsql
immutable
as $function$
declare
    v_index   integer;
    v_problem text[];
begin
    if p_messages is null then
        perform chatledger_internal.raise_invalid_argument('messages', 'is null; expected an array of messages');
    end if;
    if cardinality(p_messages) > 100000 then
        raise exception using
            errcode = 'CL014',
            message = format('the batch has %s messages, more than 100000', cardinality(p_messages)),
            detail = jsonb_build_object('argument', 'messages', 'messages', cardinality(p_messages), 'limit', 100000)::text,
            hint = 'Nothing was stored. Send the messages in several batches.';
    end if;
    if array_ndims(p_messages) > 1 then
        perform chatledger_internal.raise_invalid_argument('messages',
            format('has %s dimensions; expected a plain array of messages', array_ndims(p_messages)));
    end if;

    select input.position - 1, chatledger_internal.message_problem(input.message)
    into v_index, v_problem
    from unnest(p_messages) with ordinality as input (message, position)
    where chatledger_internal.message_problem(input.message) is not null
    limit 1;

    if found then
        raise exception using
            errcode = 'CL007',
            message = concat_ws(' ', format('message %s:', v_index), nullif(v_problem[1], ''), v_problem[2]),
            detail = jsonb_build_object('index', v_index, 'field', v_problem[1], 'problem', v_problem[2])::text,
            hint = 'Nothing of this batch was stored. Correct the message and send the batch again.';
    end if;
end
$function$;

comment on function chatledger_internal.check_messages(jsonb[]) is 'Refuses messages that cannot be stored.';
