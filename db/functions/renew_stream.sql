-- renew_stream(p_session_id, p_fence, p_ttl) -> timestamptz, until when the lease now lasts
--
-- The heartbeat of a stream's holder: lets the lease last p_ttl from now, up to a day. A lease that ran out stays lost, also
-- when nobody took it over. Leaves version and updated_at alone, as begin_stream does.
--
-- Idempotent: again only lasts longer.
-- Lock:   the session's row.
-- Raises: CL001 session not found, CL005 stale fence, CL008 invalid argument; 40001.
-- Example: select chatledger.renew_stream('s1', 1, '1 minute');
create or replace function chatledger.renew_stream(p_session_id text, p_fence bigint, p_ttl interval default '1 hour')
returns timestamptz
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_expires_at timestamptz;
begin
    if p_fence is null then
        perform chatledger_internal.raise_invalid_argument('fence', 'is null; expected the one that begin_stream returned');
    end if;
    perform chatledger_internal.check_ttl(p_ttl);

    perform chatledger_internal.lock_session(p_session_id, null, p_fence);

    update chatledger.sessions as s
    set stream_expires_at = clock_timestamp() + p_ttl
    where s.id = p_session_id
    returning s.stream_expires_at into v_expires_at;
    return v_expires_at;
end
$function$;

revoke all on function chatledger.renew_stream(text, bigint, interval) from public;
grant execute on function chatledger.renew_stream(text, bigint, interval) to chatledger_writer;
comment on function chatledger.renew_stream(text, bigint, interval) is 'Lets a stream''s lease last longer.';
