-- lock_session(p_session_id, p_user_id, p_fence) -> chatledger.sessions
-- The session's row, locked until the transaction ends: from here on nobody else changes the session. Every write takes
-- this lock first and no other of ours before it, so that calls for one session queue and never deadlock.
-- Raises CL001 (missing, deleted, not this user's), CL005 (the fence is not the current lease's), 40001 (REPEATABLE READ
-- and SERIALIZABLE: somebody changed the session since the transaction's snapshot).
create or replace function chatledger_internal.lock_session(p_session_id text, p_user_id text, p_fence bigint default null)
returns chatledger.sessions
language plpgsql
as $function$
declare
    v_session chatledger.sessions;
begin
    -- "no key update": "for update" would block the foreign key checks of other transactions.
    select s.* into v_session
    from chatledger.sessions as s
    where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id)
    for no key update;

    if not found then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;
    if p_fence is not null and not coalesce(
        p_fence = v_session.stream_fence and v_session.stream_expires_at > clock_timestamp(), false)
    then
        raise exception using
            errcode = 'CL005',
            message = format('fence %s is stale: the stream''s lease ran out or was taken over', p_fence),
            detail = jsonb_build_object('session_id', p_session_id, 'fence', p_fence,
                'current_fence', v_session.stream_fence)::text,
            hint = 'Nothing was stored. Stop this writer; begin a new stream to go on.';
    end if;
    return v_session;
end
$function$;

comment on function chatledger_internal.lock_session(text, text, bigint) is 'Locks and checks a session''s row.';
