-- store_header(p_session, p_changed) -> chatledger.sessions
-- Writes a session's new title, metadata, pin and status, if they are new, and advances the session. The caller holds the
-- session's lock. Raises CL008.
create or replace function chatledger_internal.store_header(p_session chatledger.sessions, p_changed chatledger.sessions)
returns chatledger.sessions
language plpgsql
as $function$
declare
    v_session chatledger.sessions := p_session;
begin
    if p_changed is distinct from p_session then
        if chatledger_internal.json_problem(p_changed.metadata) is not null then
            perform chatledger_internal.raise_invalid_argument('metadata', chatledger_internal.json_problem(p_changed.metadata));
        end if;
        update chatledger.sessions as s
        set title = p_changed.title, metadata = p_changed.metadata, pinned = p_changed.pinned, status = p_changed.status,
            version = s.version + 1, updated_at = greatest(clock_timestamp(), s.updated_at)
        where s.id = p_session.id
        returning s.* into v_session;
        perform chatledger_internal.notify_followers(p_session.id, v_session.watched_until, v_session.version);
    end if;
    return v_session;
end
$function$;

comment on function chatledger_internal.store_header(chatledger.sessions, chatledger.sessions) is 'Writes what update_session and save_session change in a session''s row.';
