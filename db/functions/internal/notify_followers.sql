-- notify_followers(p_session_id, p_version) -> void
-- Wakes those who follow the session, when this transaction commits, with its new version as the payload. Called by
-- whatever counts the session's version on, under the session's lock. Nobody follows: no notification, since pg_notify makes
-- all transactions of the database that notify commit one after the other.
--
-- No wake-up is lost: follow_session trusts its watch only once the watch is committed and nobody holds the session's lock.
-- Whoever takes the lock after that sees the watch here, in a statement after the lock.
create or replace function chatledger_internal.notify_followers(p_session_id text, p_version bigint)
returns void
language plpgsql
as $function$
declare
    v_channel text;
begin
    select w.channel into v_channel
    from chatledger.watches as w
    where w.session_id = p_session_id and w.watched_until > clock_timestamp();
    if found then
        perform pg_notify(v_channel, p_version::text);
    end if;
end
$function$;

comment on function chatledger_internal.notify_followers(text, bigint) is 'Wakes those who follow a session.';
