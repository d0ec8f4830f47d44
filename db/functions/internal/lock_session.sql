-- lock_session(p_session_id, p_user_id, p_fence) -> chatledger.sessions, with next_sequence, version and updated_at of now
-- The session's row, locked until the transaction ends: from here on nobody else changes the session. Every write takes
-- this lock first and no other of ours before it, so that calls for one session queue and never deadlock.
-- Raises: CL001 (missing, deleted, not this user's), CL005 (the fence is not the current lease's), 40001 (REPEATABLE READ
--         and SERIALIZABLE: somebody changed the session since the transaction's snapshot).
create or replace function chatledger_internal.lock_session(p_session_id text, p_user_id text, p_fence bigint default null)
returns chatledger.sessions
language plpgsql
as $function$
declare
    v_session chatledger.sessions;
    v_stream  chatledger.streams;
begin
    -- "no key update": "for update" would block the foreign key checks of other transactions.
    select s.* into v_session
    from chatledger.sessions as s
    where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id)
    for no key update;
    if not found then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;

    -- A statement of its own, so that it sees what was committed while the one above waited for the lock.
    select tail.next_sequence, tail.version, tail.updated_at
    into v_session.next_sequence, v_session.version, v_session.updated_at
    from chatledger_internal.tail_of(p_session_id, v_session.next_sequence, v_session.version, v_session.updated_at) as tail;
    if current_setting('transaction_isolation') <> 'read committed' then
        perform chatledger_internal.check_snapshot(p_session_id, v_session.next_sequence, v_session.version);
    end if;

    if p_fence is not null then
        select st.* into v_stream
        from chatledger.streams as st
        where st.session_id = p_session_id;
        if not coalesce(
            p_fence = v_stream.fence and v_stream.ended_at is null and v_stream.expires_at > clock_timestamp(), false)
        then
            perform chatledger_internal.raise_stale_fence(p_session_id, p_fence);
        end if;
    end if;
    return v_session;
end
$function$;

comment on function chatledger_internal.lock_session(text, text, bigint) is 'Locks and checks a session''s row.';
