-- advance_session(p_session) -> void
-- Writes what counts a session on: its version, its time, its next sequence and how many messages were removed. The caller
-- holds the session's lock and has set them.
-- Writes: sessions.
create or replace function chatledger_internal.advance_session(p_session chatledger.sessions)
returns void
language plpgsql
as $function$
begin
    update chatledger.sessions as s
    set version = p_session.version, updated_at = p_session.updated_at, next_sequence = p_session.next_sequence,
        removed_count = p_session.removed_count
    where s.id = p_session.id;
    perform chatledger_internal.notify_followers(p_session.id, p_session.version);
end
$function$;

comment on function chatledger_internal.advance_session(chatledger.sessions) is 'Writes a session''s new version.';
