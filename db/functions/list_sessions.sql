-- list_sessions(p_user_id, p_limit, p_cursor, p_title, p_status) -> headers, pinned first, then last changed first
--
-- A page of a user's sessions. A session that changes while somebody pages moves to the front; nothing else moves.
--
-- p_user_id  whose sessions; null: everybody's (a trusted caller)
-- p_limit    how many, up to 1,000
-- p_cursor   "cursor" of the last row of the page before
-- p_title    only titles that contain this, in upper or lower case
-- p_status   only sessions with this status
--
-- Locks:      none.
-- Writes:     nothing.
-- Raises:     CL008 invalid argument.
-- Example:    select session_id, title, updated_at from chatledger.list_sessions('u1', p_limit => 20);
create or replace function chatledger.list_sessions(
    p_user_id text,
    p_limit integer default 50,
    p_cursor text default null,
    p_title text default null,
    p_status text default null
)
returns table (
    session_id text, user_id text, title text, metadata jsonb, pinned boolean, status text, prompt_tokens bigint,
    completion_tokens bigint, total_tokens bigint, cache_read_tokens bigint, cache_creation_tokens bigint,
    reasoning_tokens bigint, message_count integer, next_sequence integer, version bigint,
    forked_from text, forked_at integer, created_at timestamptz, updated_at timestamptz, cursor text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $function$
#variable_conflict use_column
declare
    -- Where the page before ended. Without a cursor, before the first of all.
    v_pinned  boolean := true;
    v_updated timestamptz := 'infinity';
    v_id      text := '';
    v_hour    timestamptz := 'infinity';
begin
    if p_limit is null or p_limit not between 1 and 1000 then
        perform chatledger_internal.raise_invalid_argument('limit', 'must be from 1 to 1000');
    end if;
    if p_cursor is not null then
        if p_cursor !~ '^[tf]/[0-9]{1,17}/.' then
            perform chatledger_internal.raise_invalid_argument('cursor', 'is not one that list_sessions returned');
        end if;
        v_pinned := left(p_cursor, 1) = 't';
        v_updated := timestamptz 'epoch' + split_part(p_cursor, '/', 2)::bigint * interval '1 microsecond';
        v_id := substr(p_cursor, length(split_part(p_cursor, '/', 2)) + 4);
        v_hour := date_bin('1 hour', v_updated, timestamptz '2000-01-01 00:00:00+00');
    end if;

    -- The index gives pinned and active_hour in order; only the rows of an hour are sorted by the time of now, and only those of
    -- the page are made into headers. (Two statements, since one for both would not use the index.)
    if p_user_id is not null then
        return query
            select header.*, concat(header.pinned::text::char(1), '/',
                (extract(epoch from header.updated_at) * 1000000)::bigint, '/', header.session_id)
            from (
                select s as session, tail.next_sequence, tail.version, tail.updated_at
                from chatledger.sessions as s
                cross join lateral chatledger_internal.tail_of(s.id, s.next_sequence, s.version, s.updated_at) as tail
                where s.user_id = p_user_id and s.deleted_at is null
                    and (s.pinned, s.active_hour) <= (v_pinned, v_hour)
                    and (s.pinned, s.active_hour, tail.updated_at, s.id) < (v_pinned, v_hour, v_updated, v_id)
                    and (p_title is null or position(lower(p_title) in lower(s.title)) > 0)
                    and (p_status is null or s.status = p_status)
                order by s.pinned desc, s.active_hour desc, tail.updated_at desc, s.id desc
                limit p_limit
            ) as page
            cross join lateral chatledger_internal.header_now(page.session, page.next_sequence, page.version,
                page.updated_at) as header
            order by header.pinned desc, header.updated_at desc, header.session_id collate "C" desc;
    else
        return query
            select header.*, concat(header.pinned::text::char(1), '/',
                (extract(epoch from header.updated_at) * 1000000)::bigint, '/', header.session_id)
            from (
                select s as session, tail.next_sequence, tail.version, tail.updated_at
                from chatledger.sessions as s
                cross join lateral chatledger_internal.tail_of(s.id, s.next_sequence, s.version, s.updated_at) as tail
                where s.deleted_at is null
                    and (s.pinned, s.active_hour) <= (v_pinned, v_hour)
                    and (s.pinned, s.active_hour, tail.updated_at, s.id) < (v_pinned, v_hour, v_updated, v_id)
                    and (p_title is null or position(lower(p_title) in lower(s.title)) > 0)
                    and (p_status is null or s.status = p_status)
                order by s.pinned desc, s.active_hour desc, tail.updated_at desc, s.id desc
                limit p_limit
            ) as page
            cross join lateral chatledger_internal.header_now(page.session, page.next_sequence, page.version,
                page.updated_at) as header
            order by header.pinned desc, header.updated_at desc, header.session_id collate "C" desc;
    end if;
end
$function$;

revoke all on function chatledger.list_sessions(text, integer, text, text, text) from public;
grant execute on function chatledger.list_sessions(text, integer, text, text, text) to chatledger_reader, chatledger_writer;
comment on function chatledger.list_sessions(text, integer, text, text, text) is 'A page of a user''s sessions.';
