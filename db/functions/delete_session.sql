-- delete_session(p_session_id, p_user_id) -> boolean, whether there was something to delete
--
-- Deletes a session and all it holds. Its id stays taken, so that no late write brings it back; purge_sessions lets go
-- of it in the end.
--
-- p_session_id  the session
-- p_user_id     only if the session belongs to this user; null skips the check (a trusted caller)
--
-- Idempotent: the second time it returns false.
-- Locks:      the session's row.
-- Writes:     sessions, messages, streams, usage_records, added_tool_calls.
-- Raises:     40001. A session that is missing or another user's is not an error: false.
-- Example:    select chatledger.delete_session('s1', 'u1');
create or replace function chatledger.delete_session(p_session_id text, p_user_id text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_now     timestamptz;
begin
    if not exists (
        select from chatledger.sessions as s
        where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id)
        for no key update)
    then
        return false;
    end if;
    v_session := chatledger_internal.lock_session(p_session_id, p_user_id);

    v_now := greatest(clock_timestamp(), v_session.updated_at);
    update chatledger.sessions as s
    set deleted_at = v_now, version = v_session.version + 1, updated_at = v_now,
        user_id = null, title = null, metadata = '{}', pinned = false, status = 'deleted', next_sequence = 0,
        removed_count = 0, prompt_tokens = 0, completion_tokens = 0, total_tokens = 0,
        cache_read_tokens = 0, cache_creation_tokens = 0, reasoning_tokens = 0, forked_from = null,
        forked_at = null
    where s.id = p_session_id;
    perform chatledger_internal.notify_followers(p_session_id, v_session.version + 1);

    delete from chatledger.messages as m where m.session_id = p_session_id;
    delete from chatledger.streams as st where st.session_id = p_session_id;
    delete from chatledger.usage_records as u where u.session_id = p_session_id;
    delete from chatledger.added_tool_calls as t where t.session_id = p_session_id;
    return true;
end
$function$;

revoke all on function chatledger.delete_session(text, text) from public;
grant execute on function chatledger.delete_session(text, text) to chatledger_writer;
comment on function chatledger.delete_session(text, text) is 'Deletes a session for good.';
