-- record_usage(p_session_id, p_usage_id, p_prompt_tokens, p_completion_tokens, p_total_tokens, p_user_id, p_details)
--     -> chatledger.session_header, with the totals
--
-- Adds token usage to a session, exactly once for each p_usage_id (the completion's id, say).
--
-- p_session_id         the session
-- p_usage_id           what makes it once
-- p_prompt_tokens      tokens of the question
-- p_completion_tokens  tokens of the answer
-- p_total_tokens       null: the sum of the other two
-- p_user_id            only if the session belongs to this user; null skips the check (a trusted caller)
-- p_details            what else the provider told: of its keys, "cache_read_tokens", "cache_creation_tokens" and
--                      "reasoning_tokens" are added up too, and "model" is the model; all others are kept as they are
--
-- Idempotent: the same id with the same numbers and details again adds nothing.
-- Locks:      the session's row.
-- Writes:     usage_records, sessions.
-- Raises:     CL001 session not found, CL008 invalid argument, CL011 the id was recorded with other numbers; 40001.
-- Example:    select total_tokens from chatledger.record_usage('s1', 'chatcmpl-1', 120, 30);
create or replace function chatledger.record_usage(
    p_session_id text,
    p_usage_id text,
    p_prompt_tokens bigint,
    p_completion_tokens bigint,
    p_total_tokens bigint default null,
    p_user_id text default null,
    p_details jsonb default '{}'
)
returns chatledger.session_header
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_used    chatledger.usage_records;
    v_stored  chatledger.usage_records;
    -- numeric: two bigints may be too much for a third
    v_total   numeric := coalesce(p_total_tokens, p_prompt_tokens::numeric + p_completion_tokens);
begin
    if p_usage_id is null or char_length(p_usage_id) not between 1 and 255 then
        perform chatledger_internal.raise_invalid_argument('usage_id', 'must have 1 to 255 characters');
    end if;
    if p_prompt_tokens is null or p_completion_tokens is null
        or least(p_prompt_tokens, p_completion_tokens, v_total) < 0
        or greatest(p_prompt_tokens, p_completion_tokens, v_total) > 1000000000000
    then
        perform chatledger_internal.raise_invalid_argument('tokens', 'must be whole numbers from 0 to a million million');
    end if;
    if jsonb_typeof(p_details) is distinct from 'object' or chatledger_internal.json_problem(p_details) is not null
        or jsonb_typeof(p_details -> 'model') not in ('string', 'null')
        or p_details @? '$.keyvalue() ? (@.key like_regex "^(cache_read|cache_creation|reasoning)_tokens$"
            && !(@.value == null || @.value >= 0 && @.value <= 1000000000000 && @.value == @.value.floor()))'
    then
        perform chatledger_internal.raise_invalid_argument('details', 'must be a JSON object; in it, "model" is a string, and '
            '"cache_read_tokens", "cache_creation_tokens" and "reasoning_tokens" are whole numbers');
    end if;

    v_session := chatledger_internal.lock_session(p_session_id, p_user_id);
    v_used.session_id := p_session_id;
    v_used.usage_id := p_usage_id;
    v_used.prompt_tokens := p_prompt_tokens;
    v_used.completion_tokens := p_completion_tokens;
    v_used.total_tokens := v_total;
    v_used.cache_read_tokens := coalesce((p_details ->> 'cache_read_tokens')::numeric, 0);
    v_used.cache_creation_tokens := coalesce((p_details ->> 'cache_creation_tokens')::numeric, 0);
    v_used.reasoning_tokens := coalesce((p_details ->> 'reasoning_tokens')::numeric, 0);
    v_used.model := p_details ->> 'model';
    v_used.details := p_details - '{cache_read_tokens,cache_creation_tokens,reasoning_tokens,model}'::text[];

    select u.* into v_stored
    from chatledger.usage_records as u
    where u.session_id = p_session_id and u.usage_id = p_usage_id;
    if found then
        v_used.version := v_stored.version;
        v_used.created_at := v_stored.created_at;
        if v_stored is distinct from v_used then
            raise exception using
                errcode = 'CL011',
                message = format('usage "%s" was recorded with other numbers', p_usage_id),
                detail = jsonb_build_object('session_id', p_session_id, 'usage_id', p_usage_id)::text,
                hint = 'Nothing was added. Use one id for one completion.';
        end if;
        return chatledger_internal.header_of(v_session);
    end if;

    v_used.version := v_session.version + 1;
    v_used.created_at := greatest(clock_timestamp(), v_session.updated_at);
    insert into chatledger.usage_records values (v_used.*);

    update chatledger.sessions as s
    set prompt_tokens = s.prompt_tokens + v_used.prompt_tokens,
        completion_tokens = s.completion_tokens + v_used.completion_tokens,
        total_tokens = s.total_tokens + v_used.total_tokens,
        cache_read_tokens = s.cache_read_tokens + v_used.cache_read_tokens,
        cache_creation_tokens = s.cache_creation_tokens + v_used.cache_creation_tokens,
        reasoning_tokens = s.reasoning_tokens + v_used.reasoning_tokens,
        next_sequence = v_session.next_sequence, version = v_used.version, updated_at = v_used.created_at
    where s.id = p_session_id
    returning s.* into v_session;
    perform chatledger_internal.notify_followers(p_session_id, v_session.version);
    return chatledger_internal.header_of(v_session);
end
$function$;

revoke all on function chatledger.record_usage(text, text, bigint, bigint, bigint, text, jsonb) from public;
grant execute on function chatledger.record_usage(text, text, bigint, bigint, bigint, text, jsonb) to chatledger_writer;
comment on function chatledger.record_usage(text, text, bigint, bigint, bigint, text, jsonb) is
    'Adds token usage to a session, exactly once for each id.';
