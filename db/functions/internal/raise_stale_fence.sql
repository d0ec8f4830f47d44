-- raise_stale_fence(p_session_id, p_fence) -> never returns
-- CL005: the fence is not that of the lease that is held. Does not tell which one is.
-- Raises: CL005.
create or replace function chatledger_internal.raise_stale_fence(p_session_id text, p_fence bigint)
returns void
language plpgsql
immutable
as $function$
begin
    raise exception using
        errcode = 'CL005',
        message = format('fence %s is stale: the stream''s lease ran out or was taken over', p_fence),
        detail = jsonb_build_object('session_id', p_session_id, 'fence', p_fence)::text,
        hint = 'Nothing was stored. Stop this writer; begin a new stream to go on.';
end
$function$;

comment on function chatledger_internal.raise_stale_fence(text, bigint) is 'Raises CL005.';
