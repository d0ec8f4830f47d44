-- delete_session(p_session_id, p_user_id) -> boolean
--
-- Deletes a session and all it holds. Its id stays taken, so that no late write brings it back; purge_sessions lets go
-- of it in the end. Returns whether there was something to delete.
--
-- Idempotent: the second time it returns false.
-- Lock:   the session's row.
-- Raises: 40001. A session that is missing or another user's is not an error: false.
-- Example: select chatledger.delete_session('s1', 'u1');
create or replace function chatledger.delete_session(p_session_id text, p_user_id text default null)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_version bigint;
    v_watched timestamptz;
begin
    update chatledger.sessions as s
    set deleted_at = clock_timestamp(), version = s.version + 1, updated_at = greatest(clock_timestamp(), s.updated_at),
        user_id = null, title = null, metadata = '{}', pinned = false, status = 'deleted', next_sequence = 0,
        removed_count = 0, prompt_tokens = 0, completion_tokens = 0, total_tokens = 0,
        cache_read_tokens = 0, cache_creation_tokens = 0, reasoning_tokens = 0, forked_from = null,
        forked_at = null, stream_id = null, stream_owner = null, stream_began_at = null,
        stream_expires_at = null
    where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id)
    returning s.version, s.watched_until into v_version, v_watched;
    if not found then
        return false;
    end if;
    perform chatledger_internal.notify_followers(p_session_id, v_watched, v_version);

    delete from chatledger.messages as m where m.session_id = p_session_id;
    delete from chatledger.usage_records as u where u.session_id = p_session_id;
    delete from chatledger.added_tool_calls as t where t.session_id = p_session_id;
    return true;
end
$function$;

revoke all on function chatledger.delete_session(text, text) from public;
grant execute on function chatledger.delete_session(text, text) to chatledger_writer;
comment on function chatledger.delete_session(text, text) is 'Deletes a session for good.';
