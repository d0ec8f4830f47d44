-- record_usage(p_session_id, p_usage_id, p_prompt_tokens, p_completion_tokens, p_total_tokens, p_user_id)
--     -> chatledger.session_header, with the totals
--
-- Adds token usage to a session, exactly once for each p_usage_id (the completion's id, say).
--
-- p_total_tokens  null: the sum of the other two
--
-- Idempotent: the same id with the same numbers again adds nothing.
-- Lock:   the session's row.
-- Raises: CL001 session not found, CL008 invalid argument, CL011 the id was recorded with other numbers; 40001.
-- Example: select total_tokens from chatledger.record_usage('s1', 'chatcmpl-1', 120, 30);
create or replace function chatledger.record_usage(
    p_session_id text,
    p_usage_id text,
    p_prompt_tokens bigint,
    p_completion_tokens bigint,
    p_total_tokens bigint default null,
    p_user_id text default null
)
returns chatledger.session_header
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_stored  chatledger.usage_records;
    -- numeric: two bigints may be too much for a third
    v_total   numeric := coalesce(p_total_tokens, p_prompt_tokens::numeric + p_completion_tokens);
    v_now     timestamptz;
begin
    if p_usage_id is null or char_length(p_usage_id) not between 1 and 255 then
        perform chatledger.raise_invalid_argument('usage_id', 'must have 1 to 255 characters');
    end if;
    if p_prompt_tokens is null or p_completion_tokens is null
        or least(p_prompt_tokens, p_completion_tokens, v_total) < 0
        or greatest(p_prompt_tokens, p_completion_tokens, v_total) > 1000000000000
    then
        perform chatledger.raise_invalid_argument('tokens', 'must be whole numbers from 0 to a million million');
    end if;

    v_session := chatledger.lock_session(p_session_id, p_user_id);

    select u.* into v_stored
    from chatledger.usage_records as u
    where u.session_id = p_session_id and u.usage_id = p_usage_id;
    if found then
        if (v_stored.prompt_tokens, v_stored.completion_tokens, v_stored.total_tokens)
            <> (p_prompt_tokens, p_completion_tokens, v_total)
        then
            raise exception using
                errcode = 'CL011',
                message = format('usage "%s" was recorded with other numbers', p_usage_id),
                detail = jsonb_build_object('session_id', p_session_id, 'usage_id', p_usage_id)::text,
                hint = 'Nothing was added. Use one id for one completion.';
        end if;
        return chatledger.header_of(v_session);
    end if;

    v_now := greatest(clock_timestamp(), v_session.updated_at);
    insert into chatledger.usage_records (session_id, usage_id, prompt_tokens, completion_tokens, total_tokens, created_at)
    values (p_session_id, p_usage_id, p_prompt_tokens, p_completion_tokens, v_total, v_now);

    update chatledger.sessions as s
    set prompt_tokens = s.prompt_tokens + p_prompt_tokens,
        completion_tokens = s.completion_tokens + p_completion_tokens,
        total_tokens = s.total_tokens + v_total,
        version = s.version + 1, updated_at = v_now
    where s.id = p_session_id
    returning s.* into v_session;
    perform chatledger.notify_followers(p_session_id, v_session.watched_until, v_session.version);
    return chatledger.header_of(v_session);
end
$function$;

revoke all on function chatledger.record_usage(text, text, bigint, bigint, bigint, text) from public;
grant execute on function chatledger.record_usage(text, text, bigint, bigint, bigint, text) to chatledger_writer;
comment on function chatledger.record_usage(text, text, bigint, bigint, bigint, text) is
    'Adds token usage to a session, exactly once for each id.';
