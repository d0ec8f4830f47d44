-- message_hash(p_body) -> bytea
-- What stands for a message's body once the row no longer holds it, because it was amended or removed. Internal.
create or replace function chatledger.message_hash(p_body jsonb)
returns bytea
language sql
immutable
as $function$
    select sha256(convert_to(p_body::text, 'UTF8'))
$function$;

revoke all on function chatledger.message_hash(jsonb) from public;
comment on function chatledger.message_hash(jsonb) is 'Internal: a hash of a message''s body.';
