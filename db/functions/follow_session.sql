-- follow_session(p_session_id, p_user_id, p_ttl, p_echo) -> (channel, watched_for), one row
--
-- Asks for a notification, on the channel, of every change of the session that is committed from now on: for p_ttl, so
-- call again before watched_for is over. The payload is the session's new version. First call this, then LISTEN, then
-- read: see notify_followers for why nothing is missed that way. A notification only says that there may be something to
-- read: read_session tells what.
--
-- p_ttl   for how long; the watch is extended once less than half of it is left
-- p_echo  notify the channel now, so that the caller sees whether notifications reach it at all
--
-- watched_for is what is left of the watch. It is 0 when a transaction that has written to the session and is still open
-- kept it from being set: poll meanwhile, and call again soon. (An interval, since the caller's clock may be wrong.)
-- Changes neither the session's version nor its updated_at.
-- Idempotent.
-- Lock:   the session's row, if nobody has it; never waits.
-- Raises: CL001 session not found, CL008 invalid argument; 40001.
-- Example: select channel, watched_for from chatledger.follow_session('s1');
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
declare
    v_session chatledger.sessions;
    v_watched timestamptz;
    v_now     timestamptz := clock_timestamp();
begin
    -- An upper limit, so that nobody makes every write of a session notify for good.
    if p_ttl is null or p_ttl not between interval '1 millisecond' and interval '1 hour' then
        perform chatledger_internal.raise_invalid_argument('ttl', 'must be an interval from 1 millisecond to 1 hour');
    end if;

    select s.* into v_session
    from chatledger.sessions as s
    where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id);
    if not found then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;

    if coalesce(v_session.watched_until, '-infinity') < v_now + p_ttl / 2 then
        update chatledger.sessions as s
        set watched_until = v_now + p_ttl
        where s.id = (
            select free.id
            from chatledger.sessions as free
            where free.id = p_session_id
            for no key update skip locked)
        returning s.watched_until into v_watched;
    end if;

    channel := chatledger_internal.session_channel(p_session_id);
    watched_for := greatest(coalesce(v_watched, v_session.watched_until) - v_now, interval '0');
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
