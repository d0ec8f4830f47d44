-- purge_sessions(p_older_than, p_limit) -> integer, how many sessions went
--
-- Removes sessions that nobody changed for so long, and the ids of sessions deleted so long ago. One bounded batch a
-- call, so that locks and the transaction stay short: call again until it returns 0. Sessions that somebody is writing
-- to or streaming into are left out.
--
-- p_older_than  for how long nobody changed them
-- p_limit       how many sessions, up to 100,000
--
-- Idempotent: again removes the next batch.
-- Locks:      the rows of the batch.
-- Writes:     sessions; by their foreign keys messages, streams, watches, usage_records, added_tool_calls.
-- Raises:     CL008 invalid argument.
-- Example:    select chatledger.purge_sessions('180 days');
create or replace function chatledger.purge_sessions(p_older_than interval, p_limit integer default 1000)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_now    timestamptz := clock_timestamp();
    v_before timestamptz;
    v_purged integer;
begin
    if p_older_than is null or p_older_than not between interval '0' and interval '1000 years' then
        perform chatledger_internal.raise_invalid_argument('older_than', 'must be an interval from 0 to 1000 years');
    end if;
    if p_limit is null or p_limit not between 1 and 100000 then
        perform chatledger_internal.raise_invalid_argument('limit', 'must be from 1 to 100000');
    end if;

    v_before := v_now - p_older_than;
    -- Messages and all else go with the row, by their foreign keys.
    delete from chatledger.sessions as s
    where s.id = any (array(
        select old.id
        from chatledger.sessions as old
        where old.pinned in (false, true) and old.active_hour <= v_before and old.updated_at < v_before
            -- Its row may be as old as an hour, while messages came since.
            and coalesce((
                select m.created_at
                from chatledger.messages as m
                where m.session_id = old.id and not m.removed
                order by m.sequence desc
                limit 1) < v_before, true)
            and not exists (
                select from chatledger.streams as st
                where st.session_id = old.id and st.ended_at is null and st.expires_at > v_now)
        limit p_limit
        for update skip locked));
    get diagnostics v_purged = row_count;
    return v_purged;
end
$function$;

revoke all on function chatledger.purge_sessions(interval, integer) from public;
grant execute on function chatledger.purge_sessions(interval, integer) to chatledger_admin;
comment on function chatledger.purge_sessions(interval, integer) is 'Retention: removes old sessions, a bounded batch a call.';
