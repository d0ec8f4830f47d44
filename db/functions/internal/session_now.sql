-- session_now(p_session_id, p_user_id) -> chatledger.sessions, with next_sequence, version and updated_at of now
-- A session as it is in the caller's snapshot; all null when it is missing, deleted, or not this user's. For readers: no lock.
create or replace function chatledger_internal.session_now(p_session_id text, p_user_id text)
returns chatledger.sessions
language plpgsql
stable
as $function$
declare
    v_session chatledger.sessions;
begin
    select s.* into v_session
    from chatledger.sessions as s
    where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id);
    if found then
        select tail.next_sequence, tail.version, tail.updated_at
        into v_session.next_sequence, v_session.version, v_session.updated_at
        from chatledger_internal.tail_of(p_session_id, v_session.next_sequence, v_session.version, v_session.updated_at)
            as tail;
    end if;
    return v_session;
end
$function$;

comment on function chatledger_internal.session_now(text, text) is 'A session as it is now.';
