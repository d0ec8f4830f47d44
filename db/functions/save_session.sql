-- save_session(p_session_id, p_user_id, p_read_version, p_header, p_messages, p_amendments, p_usage, p_fence)
--     -> a row with the header in "session" and the version before in "version_before", then a row a message that was
--        appended or amended: (message_id, sequence, created_at, amended_version)
--
-- Saves what one caller changed in its copy of a session, in one call: whole or not at all. Changes come as {"from", "to"}:
-- what the caller saw and what it wants; without "from" or "to" the value was, or is to be, absent. Numbers are compared as
-- doubles, since most clients hold them so.
--
-- p_session_id    the session
-- p_user_id       only if the session belongs to this user; null skips the check (a trusted caller)
-- p_read_version  the session's version that the caller read; null or 0: it never saved this session, so create it.
--                 Otherwise a session that is gone stays gone.
-- p_header        changes of "title", "pinned", "status", and of keys of "metadata". One that somebody else changed since
--                 stays as they left it: the returned header tells.
-- p_messages      new messages, as for append_messages
-- p_amendments    objects {"message_id", "fields": changes, "metadata": changes of its keys, "add_tool_calls": […]}. A field
--                 that somebody else changed since is refused, and so are "role" and "message_id"; a tool call whose id
--                 the message has is passed over.
-- p_usage         objects {"usage_id", "prompt_tokens", "completion_tokens", "total_tokens", …}, each recorded exactly once;
--                 the other keys are the details that record_usage takes
-- p_fence         the fence of the stream that writes
--
-- Idempotent: the same call again changes nothing.
-- Locks:      the session's row.
-- Writes:     sessions, watches, messages, usage_records.
-- Raises:     CL001 session not found, CL003 message id conflict, CL004 amended since, CL005 stale fence, CL007 invalid
--             message, CL008 invalid argument, CL009 message not found, CL011 usage id conflict, CL014 batch too large; 40001.
-- Example:    select session ->> 'title' as title, message_id, sequence from chatledger.save_session('s1',
--                 p_header => '{"title": {"to": "Trip to Oslo"}}',
--                 p_messages => array['{"message_id": "m2", "role": "user", "content": "When?"}']::jsonb[]);
create or replace function chatledger.save_session(
    p_session_id text,
    p_user_id text default null,
    p_read_version bigint default null,
    p_header jsonb default '{}',
    p_messages jsonb[] default '{}',
    p_amendments jsonb[] default '{}',
    p_usage jsonb[] default '{}',
    p_fence bigint default null
)
returns table (
    session jsonb, version_before bigint, message_id text, sequence integer, created_at timestamptz, amended_version bigint
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_session   chatledger.sessions;
    v_changed   chatledger.sessions;
    v_before    bigint;
    v_version   bigint;
    v_amendment jsonb;
    v_usage     jsonb;
    v_amended   text[] := '{}';
    v_appended  text[] := '{}';
    v_later     jsonb[] := '{}';
begin
    perform chatledger_internal.check_changes(p_header, p_amendments, p_usage);
    if coalesce(p_read_version, 0) = 0 then
        perform chatledger.create_session(p_session_id, p_user_id);
    end if;
    v_session := chatledger_internal.lock_session(p_session_id, p_user_id, p_fence);
    v_before := v_session.version;

    -- Only what still is as the caller saw it.
    v_changed := v_session;
    if p_header ? 'title' and v_session.title is not distinct from nullif(p_header #>> '{title,from}', '') then
        v_changed.title := nullif(p_header #>> '{title,to}', '');
    end if;
    if v_session.pinned = (p_header #>> '{pinned,from}')::boolean then
        v_changed.pinned := coalesce((p_header #>> '{pinned,to}')::boolean, v_session.pinned);
    end if;
    if v_session.status = p_header #>> '{status,from}' then
        v_changed.status := coalesce(p_header #>> '{status,to}', v_session.status);
    end if;
    v_changed.metadata := chatledger_internal.apply_changes(v_session.metadata, (
        select jsonb_object_agg(change.key, change.value)
        from jsonb_each(p_header -> 'metadata') as change
        where chatledger_internal.same_value(v_session.metadata -> change.key, change.value -> 'from')));
    v_session := chatledger_internal.store_header(v_session, v_changed);

    foreach v_amendment in array p_amendments loop
        if not exists (
            select from chatledger.messages as m
            where m.session_id = p_session_id and m.message_id = v_amendment ->> 'message_id')
        then
            -- Of a new message: one that the caller changed after it had sent it and got no answer.
            v_later := v_later || v_amendment;
        else
            v_version := v_session.version;
            v_session := chatledger_internal.apply_amendment(v_session, v_amendment, p_read_version);
            if v_session.version > v_version then
                v_amended := v_amended || (v_amendment ->> 'message_id');
            end if;
        end if;
    end loop;

    foreach v_usage in array p_usage loop
        perform chatledger.record_usage(p_session_id, v_usage ->> 'usage_id', (v_usage ->> 'prompt_tokens')::bigint,
            (v_usage ->> 'completion_tokens')::bigint, (v_usage ->> 'total_tokens')::bigint, null,
            v_usage - '{usage_id,prompt_tokens,completion_tokens,total_tokens}'::text[]);
    end loop;

    -- After all else, so that the batch's timestamp is the session's.
    v_appended := array(
        select receipt.message_id from chatledger.append_messages(p_session_id, p_messages) as receipt);

    if v_later <> '{}' then
        v_session := chatledger_internal.lock_session(p_session_id, p_user_id);
        foreach v_amendment in array v_later loop
            v_session := chatledger_internal.apply_amendment(v_session, v_amendment, p_read_version);
        end loop;
    end if;

    v_session := chatledger_internal.lock_session(p_session_id, p_user_id);
    return query
        select to_jsonb(chatledger_internal.header_of(v_session)), v_before, null::text, null::integer, null::timestamptz,
            null::bigint;
    return query
        select null::jsonb, null::bigint, m.message_id, m.sequence, m.created_at, m.amended_version
        from unnest(v_amended || v_appended) as wanted (id)
        cross join lateral (
            select stored.message_id, stored.sequence, stored.created_at, stored.amended_version
            from chatledger.messages as stored
            where stored.session_id = p_session_id and stored.message_id = wanted.id
            limit 1  -- so that each is looked up by its id: see append_messages
        ) as m
        order by m.sequence;
end
$function$;

revoke all on function chatledger.save_session(text, text, bigint, jsonb, jsonb[], jsonb[], jsonb[], bigint) from public;
grant execute on function chatledger.save_session(text, text, bigint, jsonb, jsonb[], jsonb[], jsonb[], bigint)
    to chatledger_writer;
comment on function chatledger.save_session(text, text, bigint, jsonb, jsonb[], jsonb[], jsonb[], bigint) is
    'Saves what one caller changed in its copy of a session, whole, without undoing what others changed.';
