-- store_header(p_session, p_changed) -> chatledger.sessions
-- Writes a session's new title, metadata, pin and status, if they are new, and counts the session on. A pin alone is no
-- activity: it leaves updated_at, and so the session's place in lists. The caller holds the session's lock.
-- Writes: sessions.
-- Raises: CL008.
create or replace function chatledger_internal.store_header(p_session chatledger.sessions, p_changed chatledger.sessions)
returns chatledger.sessions
language plpgsql
as $function$
declare
    v_session chatledger.sessions := p_session;
begin
    if p_changed is not distinct from p_session then
        return p_session;
    end if;
    if chatledger_internal.json_problem(p_changed.metadata) is not null then
        perform chatledger_internal.raise_invalid_argument('metadata',
            chatledger_internal.json_problem(p_changed.metadata));
    end if;

    v_session.pinned := p_changed.pinned;
    if v_session is distinct from p_changed then
        v_session.updated_at := greatest(clock_timestamp(), p_session.updated_at);
    end if;
    v_session.title := p_changed.title;
    v_session.metadata := p_changed.metadata;
    v_session.status := p_changed.status;
    v_session.version := p_session.version + 1;
    update chatledger.sessions as s
    set title = v_session.title, metadata = v_session.metadata, pinned = v_session.pinned, status = v_session.status
    where s.id = v_session.id;
    perform chatledger_internal.advance_session(v_session);
    return v_session;
end
$function$;

comment on function chatledger_internal.store_header(chatledger.sessions, chatledger.sessions) is
    'Writes what update_session and save_session change in a session''s row.';
