-- new_messages(p_session_id, p_messages) -> jsonb[], in order
-- What of a batch is not stored yet, each id once. The caller holds the session's lock, and every message has an id.
--
-- The same id stands for the same body, or the caller is wrong. A key that is null is as good as none: clients drop such keys
-- from what they loaded. ("limit 1" has each message looked up by its id. A join might read the whole session, by a plan that
-- the connection made while the table was small.)
-- Raises: CL003.
create or replace function chatledger_internal.new_messages(p_session_id text, p_messages jsonb[])
returns jsonb[]
language plpgsql
as $function$
declare
    v_index    integer;
    v_conflict text;
begin
    select repeated.position - 1, repeated.id
    into v_index, v_conflict
    from (
        select input.message ->> 'message_id' as id, input.position, body, first_value(body) over same_id as first_body
        from unnest(p_messages) with ordinality as input (message, position)
        cross join lateral chatledger_internal.merge_keys('{}', input.message - 'message_id') as body
        window same_id as (partition by input.message ->> 'message_id' order by input.position)
    ) as repeated
    left join lateral (
        select m.removed, m.original_hash, chatledger.message_body(m) as body
        from chatledger.messages as m
        where m.session_id = p_session_id and m.message_id = repeated.id
        limit 1
    ) as stored on true
    where case
        when stored.body is null then repeated.first_body <> repeated.body
        -- As it was appended, or as it was amended since: a stale copy may hold either.
        else (stored.removed or chatledger_internal.merge_keys('{}', stored.body) <> repeated.body)
            and stored.original_hash is distinct from chatledger_internal.message_hash(repeated.body)
    end
    order by repeated.position
    limit 1;
    if found then
        raise exception using
            errcode = 'CL003',
            message = format('message %s: message_id "%s" is stored in this session with another body', v_index, v_conflict),
            detail = jsonb_build_object('index', v_index, 'field', 'message_id', 'message_id', v_conflict)::text,
            hint = 'Nothing of this batch was stored. Use a new id for a new message, amend_message to change one.';
    end if;

    return array(
        select fresh.message
        from (
            select distinct on (input.message ->> 'message_id') input.message, input.position
            from unnest(p_messages) with ordinality as input (message, position)
            where (
                select stored.sequence
                from chatledger.messages as stored
                where stored.session_id = p_session_id and stored.message_id = input.message ->> 'message_id'
                limit 1) is null
            order by input.message ->> 'message_id', input.position
        ) as fresh
        order by fresh.position);
end
$function$;

comment on function chatledger_internal.new_messages(text, jsonb[]) is 'What of a batch is not stored yet.';
