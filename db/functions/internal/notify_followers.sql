-- notify_followers(p_session_id, p_watched_until, p_version) -> void
-- Wakes those who follow the session, when this transaction commits, with its new version as the payload. Called by
-- whatever advances sessions.version, with the watched_until of the row that it has locked. Nobody follows: no
-- notification, since pg_notify makes all transactions of the database that notify commit one after the other.
--
-- No wake-up is lost: a follower sets watched_until and commits, then LISTENs, then reads. A writer that locked the row
-- after that sees watched_until; one that locked it before has committed before, and the read sees what it wrote.
-- (follow_session waits for no writer: while one has the row, watched_until stays unset, and the follower polls.)
create or replace function chatledger_internal.notify_followers(
    p_session_id text,
    p_watched_until timestamptz,
    p_version bigint
)
returns void
language plpgsql
as $function$
begin
    if p_watched_until > clock_timestamp() then
        perform pg_notify(chatledger_internal.session_channel(p_session_id), p_version::text);
    end if;
end
$function$;

comment on function chatledger_internal.notify_followers(text, timestamptz, bigint) is 'Wakes those who follow a session.';
