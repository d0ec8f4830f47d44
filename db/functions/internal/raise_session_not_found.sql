-- raise_session_not_found(p_session_id) -> never returns
-- One answer for a session that is missing, deleted or somebody else's (CL001), so that ids cannot be probed. An id that
-- no session can have is an error of the caller's (CL008).
create or replace function chatledger_internal.raise_session_not_found(p_session_id text)
returns void
language plpgsql
immutable
as $function$
begin
    if p_session_id is null or char_length(p_session_id) not between 1 and 255 then
        raise exception using
            errcode = 'CL008',
            message = 'session_id must have 1 to 255 characters',
            detail = jsonb_build_object('argument', 'session_id')::text,
            hint = 'Pass the id that the session was created with.';
    end if;
    raise exception using
        errcode = 'CL001',
        message = format('session "%s" not found', p_session_id),
        detail = jsonb_build_object('session_id', p_session_id)::text,
        hint = 'It was never created, was deleted, or belongs to another user. Ids of deleted sessions cannot be used again.';
end
$function$;

comment on function chatledger_internal.raise_session_not_found(text) is 'Raises CL001.';
