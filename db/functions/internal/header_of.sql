-- header_of(p_session) -> chatledger.session_header
-- What the functions return of a session that lock_session or session_now gave.
create or replace function chatledger_internal.header_of(p_session chatledger.sessions)
returns chatledger.session_header
language sql
immutable
as $function$
    select chatledger_internal.header_now(p_session, p_session.next_sequence, p_session.version, p_session.updated_at)
$function$;

comment on function chatledger_internal.header_of(chatledger.sessions) is 'A session as a header.';
