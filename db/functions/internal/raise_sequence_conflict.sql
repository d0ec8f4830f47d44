-- raise_sequence_conflict(p_session_id, p_version, p_next_sequence, p_expected_sequence) -> never returns
-- CL002: the session does not go on where the caller expected.
-- Raises: CL002.
create or replace function chatledger_internal.raise_sequence_conflict(
    p_session_id text,
    p_version bigint,
    p_next_sequence integer,
    p_expected_sequence integer
)
returns void
language plpgsql
immutable
as $function$
begin
    raise exception using
        errcode = 'CL002',
        message = format('session "%s" goes on at sequence %s, not %s', p_session_id, p_next_sequence, p_expected_sequence),
        detail = jsonb_build_object('session_id', p_session_id, 'expected_sequence', p_expected_sequence,
            'next_sequence', p_next_sequence, 'version', p_version)::text,
        hint = 'Nothing was changed. Somebody appended since: read what is new, then decide again.';
end
$function$;

comment on function chatledger_internal.raise_sequence_conflict(text, bigint, integer, integer) is 'Raises CL002.';
