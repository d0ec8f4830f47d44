-- raise_sequence_conflict(p_session, p_expected_sequence) -> never returns
-- CL002: the session does not go on where the caller expected.
create or replace function chatledger_internal.raise_sequence_conflict(p_session chatledger.sessions, p_expected_sequence integer)
returns void
language plpgsql
immutable
as $function$
begin
    raise exception using
        errcode = 'CL002',
        message = format('session "%s" goes on at sequence %s, not %s',
            p_session.id, p_session.next_sequence, p_expected_sequence),
        detail = jsonb_build_object('session_id', p_session.id, 'expected_sequence', p_expected_sequence,
            'next_sequence', p_session.next_sequence, 'version', p_session.version)::text,
        hint = 'Nothing was changed. Somebody appended since: read what is new, then decide again.';
end
$function$;

comment on function chatledger_internal.raise_sequence_conflict(chatledger.sessions, integer) is 'Raises CL002.';
