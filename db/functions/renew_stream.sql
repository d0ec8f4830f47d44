-- renew_stream(p_session_id, p_fence, p_ttl, p_user_id) -> timestamptz, until when the lease now lasts
--
-- The heartbeat of a stream's holder: lets the lease last p_ttl from now, up to a day; never shorter than it does already. A
-- lease that ran out stays lost, also when nobody took it over. Leaves version and updated_at alone, as begin_stream does.
--
-- p_session_id  the session
-- p_fence       the fence that begin_stream returned
-- p_ttl         for how long
-- p_user_id     only if the session belongs to this user; null skips the check (a trusted caller)
--
-- Idempotent: again only lasts longer.
-- Locks:      the stream's row, not the session's: a heartbeat does not queue behind writes.
-- Writes:     streams.
-- Raises:     CL001 session not found, CL005 stale fence, CL008 invalid argument; 40001.
-- Example:    select chatledger.renew_stream(session_id, fence, '1 minute') from chatledger.active_streams;
create or replace function chatledger.renew_stream(
    p_session_id text,
    p_fence bigint,
    p_ttl interval default '1 hour',
    p_user_id text default null
)
returns timestamptz
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_now        timestamptz := clock_timestamp();
    v_expires_at timestamptz;
begin
    if p_fence is null then
        perform chatledger_internal.raise_invalid_argument('fence', 'is null; expected the one that begin_stream returned');
    end if;
    perform chatledger_internal.check_ttl(p_ttl);
    if (chatledger_internal.session_now(p_session_id, p_user_id)).id is null then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;

    update chatledger.streams as st
    set expires_at = greatest(st.expires_at, v_now + p_ttl)
    where st.session_id = p_session_id and st.fence = p_fence and st.ended_at is null and st.expires_at > v_now
    returning st.expires_at into v_expires_at;
    if not found then
        perform chatledger_internal.raise_stale_fence(p_session_id, p_fence);
    end if;
    return v_expires_at;
end
$function$;

revoke all on function chatledger.renew_stream(text, bigint, interval, text) from public;
grant execute on function chatledger.renew_stream(text, bigint, interval, text) to chatledger_writer;
comment on function chatledger.renew_stream(text, bigint, interval, text) is 'Lets a stream''s lease last longer.';
