-- session_channel(p_session_id) -> text
-- The channel on which a session's changes are notified. A hash, since the names of channels end at 63 bytes, and since
-- whoever may connect may LISTEN, and must not learn ids that way.
create or replace function chatledger_internal.session_channel(p_session_id text)
returns text
language sql
immutable
as $function$
    select 'chatledger_' || left(encode(sha256(convert_to(p_session_id, 'UTF8')), 'hex'), 40)
$function$;

comment on function chatledger_internal.session_channel(text) is 'The channel of a session''s notifications.';
