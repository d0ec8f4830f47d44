-- end_stream(p_session_id, p_fence, p_user_id) -> boolean, whether this fence held the lease
--
-- Gives the lease of a stream back, so that the next one can begin at once. Leaves version and updated_at alone, as
-- begin_stream does.
--
-- p_session_id  the session
-- p_fence       the fence that begin_stream returned
-- p_user_id     only if the session belongs to this user; null skips the check (a trusted caller)
--
-- Idempotent: the second time, and for a lease that ran out or was taken over, it changes nothing and returns false.
-- Locks:      the stream's row.
-- Writes:     streams.
-- Raises:     40001. A session that is missing or another user's is not an error: false.
-- Example:    select chatledger.end_stream(session_id, fence) from chatledger.active_streams;
create or replace function chatledger.end_stream(p_session_id text, p_fence bigint, p_user_id text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_now timestamptz := clock_timestamp();
begin
    if (chatledger_internal.session_now(p_session_id, p_user_id)).id is null then
        return false;
    end if;
    update chatledger.streams as st
    set ended_at = v_now
    where st.session_id = p_session_id and st.fence = p_fence and st.ended_at is null and st.expires_at > v_now;
    return found;
end
$function$;

revoke all on function chatledger.end_stream(text, bigint, text) from public;
grant execute on function chatledger.end_stream(text, bigint, text) to chatledger_writer;
comment on function chatledger.end_stream(text, bigint, text) is 'Gives the lease of a session''s stream back.';
