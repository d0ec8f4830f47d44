-- read_session(p_session_id, p_user_id, p_since_version, p_since_sequence, p_last, p_limit)
--     -> a row with the header in "session", then a row a message, in order of their sequence
--
-- A session and its messages, of one moment, in one call. No row at all when the session is missing, deleted or another
-- user's.
--
-- p_session_id      the session
-- p_user_id         only if the session belongs to this user; null skips the check (a trusted caller)
-- p_since_version, p_since_sequence
--                   the header's version and next_sequence of an earlier read: only what changed since, that is new
--                   messages, and earlier ones that were amended or removed (removed = true, without content). Without
--                   p_since_version: only the messages from p_since_sequence on.
-- p_last            only the last so many messages, reaching back like get_messages
-- p_limit           only the first so many of the messages from p_since_sequence on. If there are that many, go on with the
--                   version of this header and the last message's sequence + 1.
--
-- Returns:    the header has the session's totals, and in "usage" the records of usage; with p_since_version those since,
--             with p_last none. All is of the snapshot of the calling query, since the function is stable.
-- Locks:      none.
-- Writes:     nothing.
-- Raises:     CL008 invalid argument.
-- Example:    select session, sequence, role, content from chatledger.read_session('s1');
create or replace function chatledger.read_session(
    p_session_id text,
    p_user_id text default null,
    p_since_version bigint default null,
    p_since_sequence integer default null,
    p_last integer default null,
    p_limit integer default null
)
returns table (
    session jsonb, sequence integer, message_id text, role text, content text, content_parts jsonb, name text,
    tool_call_id text, refusal text, tool_calls jsonb, function_call jsonb, metadata jsonb, duration_ms integer,
    extra jsonb, amended_version bigint, created_at timestamptz, removed boolean
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_start   integer := coalesce(p_since_sequence, 0);
begin
    if p_last < 1 then
        perform chatledger_internal.raise_invalid_argument('last', 'must be 1 or more, or null for all');
    end if;
    if p_limit < 1 then
        perform chatledger_internal.raise_invalid_argument('limit', 'must be 1 or more, or null for all');
    end if;
    if p_since_version is not null and p_since_sequence is null then
        perform chatledger_internal.raise_invalid_argument('since_version', 'needs since_sequence');
    end if;

    v_session := chatledger_internal.session_now(p_session_id, p_user_id);
    if v_session.id is null then
        return;
    end if;

    return query
        select to_jsonb(chatledger_internal.header_of(v_session)) || jsonb_build_object('usage', (
                select coalesce(jsonb_agg(u.details || jsonb_build_object(
                    'usage_id', u.usage_id, 'prompt_tokens', u.prompt_tokens, 'completion_tokens', u.completion_tokens,
                    'total_tokens', u.total_tokens, 'cache_read_tokens', u.cache_read_tokens,
                    'cache_creation_tokens', u.cache_creation_tokens, 'reasoning_tokens', u.reasoning_tokens,
                    'model', u.model) order by u.version), '[]')
                from chatledger.usage_records as u
                where p_last is null and u.session_id = p_session_id and u.version > coalesce(p_since_version, 0))),
            null::integer, null::text, null::text, null::text, null::jsonb,
            null::text, null::text, null::text, null::jsonb, null::jsonb, null::jsonb, null::integer, null::jsonb,
            null::bigint, null::timestamptz, null::boolean;
    if v_session.version = p_since_version and v_session.next_sequence <= p_since_sequence then
        return;
    end if;

    if p_since_version is not null then
        return query
            select null::jsonb, m.sequence, m.message_id, m.role, m.content, m.content_parts, m.name, m.tool_call_id,
                m.refusal, m.tool_calls, m.function_call, m.metadata, m.duration_ms, m.extra, m.amended_version,
                m.created_at, m.removed
            from chatledger.messages as m
            where m.session_id = p_session_id and m.amended_version > p_since_version and m.sequence < p_since_sequence
            order by m.sequence;
    end if;
    if p_last is not null then
        v_start := greatest(v_start, chatledger_internal.page_start(p_session_id, null, p_last));
    end if;

    return query
        select null::jsonb, m.sequence, m.message_id, m.role, m.content, m.content_parts, m.name, m.tool_call_id,
            m.refusal, m.tool_calls, m.function_call, m.metadata, m.duration_ms, m.extra, m.amended_version,
            m.created_at, m.removed
        from chatledger.messages as m
        where m.session_id = p_session_id and m.sequence >= v_start and not m.removed
        order by m.sequence
        limit p_limit;
end
$function$;

revoke all on function chatledger.read_session(text, text, bigint, integer, integer, integer) from public;
grant execute on function chatledger.read_session(text, text, bigint, integer, integer, integer)
    to chatledger_reader, chatledger_writer;
comment on function chatledger.read_session(text, text, bigint, integer, integer, integer) is
    'A session and its messages, or what changed since a version.';
