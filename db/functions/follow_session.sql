-- follow_session(p_session_id, p_user_id, p_ttl, p_echo) -> (channel, watched_for), one row
--
-- Asks for a notification, on the channel, of every change of the session that is committed from now on: for p_ttl, so
-- call again before watched_for is over. The payload is the session's new version. Call this and commit, LISTEN, call this
-- again until watched_for is above 0, then read: nothing is missed that way. A notification only says that there may be
-- something to read: read_session tells what.
--
-- p_session_id  the session
-- p_user_id     only if the session belongs to this user; null skips the check (a trusted caller)
-- p_ttl         for how long; the watch is extended once less than half of it is left
-- p_echo        notify the channel now, so that the caller sees whether notifications reach it at all
--
-- Returns:    watched_for is what is left of a watch on which the caller can rely. It is 0 when this call has set the watch,
--             which others see once it is committed, and while a transaction that has written to the session is open, which
--             may not have seen the watch: poll meanwhile, and call again soon. (An interval, since the caller's clock may be
--             wrong.)
-- Idempotent: yes. Changes neither the session's version nor its updated_at.
-- Locks:      the watch's row, which no writer locks, if no other follower has it; never waits.
-- Writes:     watches.
-- Raises:     CL001 session not found, CL008 invalid argument; 40001.
-- Example:    select channel, watched_for from chatledger.follow_session('s1');
create or replace function chatledger.follow_session(
    p_session_id text,
    p_user_id text default null,
    p_ttl interval default '1 minute',
    p_echo boolean default false
)
returns table (channel text, watched_for interval)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_watch   chatledger.watches;
    v_now     timestamptz := clock_timestamp();
begin
    -- An upper limit, so that nobody makes every write of a session notify for good.
    if p_ttl is null or p_ttl not between interval '1 millisecond' and interval '1 hour' then
        perform chatledger_internal.raise_invalid_argument('ttl', 'must be an interval from 1 millisecond to 1 hour');
    end if;
    v_session := chatledger_internal.session_now(p_session_id, p_user_id);
    if v_session.id is null then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;

    select w.* into v_watch
    from chatledger.watches as w
    where w.session_id = p_session_id;
    channel := v_watch.channel;
    watched_for := interval '0';
    if v_watch.watched_until > v_now and not exists (
        -- Whoever holds the row's lock may have looked for the watch before it was committed.
        select from chatledger.sessions as s
        join pg_locks as l on l.locktype = 'transactionid' and l.granted and l.transactionid = s.xmax
        where s.id = p_session_id and l.pid <> pg_backend_pid())
    then
        watched_for := v_watch.watched_until - v_now;
    end if;

    if coalesce(v_watch.watched_until, '-infinity') < v_now + p_ttl / 2 then
        update chatledger.watches as w
        set watched_until = v_now + p_ttl
        where w.session_id = (
            select free.session_id
            from chatledger.watches as free
            where free.session_id = p_session_id
            for update skip locked);
        if found and watched_for > interval '0' then
            watched_for := p_ttl;
        end if;
    end if;

    if coalesce(p_echo, false) then
        perform pg_notify(channel, v_session.version::text);
    end if;
    return next;
end
$function$;

revoke all on function chatledger.follow_session(text, text, interval, boolean) from public;
grant execute on function chatledger.follow_session(text, text, interval, boolean) to chatledger_reader, chatledger_writer;
comment on function chatledger.follow_session(text, text, interval, boolean) is
    'Asks for a notification of every change of a session, for a while.';
