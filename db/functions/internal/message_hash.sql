-- message_hash(p_body) -> bytea
-- What stands for a message's body once the row no longer holds it, because it was amended or removed. A duration of 7.0 is
-- stored as 7, so both hash alike; so do a key that is null and one that is missing.
create or replace function chatledger_internal.message_hash(p_body jsonb)
returns bytea
language sql
stable
as $function$
    select sha256(convert_to((
        case jsonb_typeof(p_body -> 'duration_ms')
            when 'number' then jsonb_set(body, '{duration_ms}', to_jsonb((p_body -> 'duration_ms')::integer))
            else body
        end)::text, 'UTF8'))
    from chatledger_internal.merge_keys('{}', p_body) as body
$function$;

comment on function chatledger_internal.message_hash(jsonb) is 'A hash of a message''s body.';
