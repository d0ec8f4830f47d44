-- insert_session(p_session) -> boolean, whether it is new
-- Stores a session's row and what belongs to every session. An id that is taken already changes nothing.
-- Writes: sessions, watches.
create or replace function chatledger_internal.insert_session(p_session chatledger.sessions)
returns boolean
language plpgsql
as $function$
declare
    v_channel text := 'chatledger_' || replace(gen_random_uuid()::text, '-', '');
begin
    insert into chatledger.sessions (
        id, user_id, title, metadata, status, next_sequence, forked_from, forked_at, created_at, updated_at)
    values (
        p_session.id, p_session.user_id, p_session.title, p_session.metadata, p_session.status, 0, p_session.forked_from,
        p_session.forked_at, p_session.created_at, p_session.updated_at)
    on conflict (id) do nothing;
    if not found then
        return false;
    end if;
    -- From the start, so that a follower only ever updates it, and never waits for another who inserts it.
    insert into chatledger.watches (session_id, channel) values (p_session.id, v_channel);
    return true;
end
$function$;

comment on function chatledger_internal.insert_session(chatledger.sessions) is 'Stores a new session''s row.';
