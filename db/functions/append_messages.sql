-- append_messages(p_session_id, p_messages, p_user_id, p_expected_sequence, p_fence)
--     -> (message_id, sequence, created_at, appended), a row a message, in input order
--
-- Appends a batch to a session: whole or not at all, on consecutive sequences, under one timestamp.
--
-- p_session_id         the session; it must exist
-- p_messages           up to 100,000 messages in OpenAI's chat format, each with a "message_id" of the caller's; without one an
--                      id is generated, and sending that message again would store it again
-- p_user_id            only if the session belongs to this user; null skips the check (a trusted caller)
-- p_expected_sequence  append only if the session's next sequence is this
-- p_fence              the fence of the stream that writes
--
-- Idempotent: an id that is already stored with the same body, as appended or as amended since, stores nothing and
--             returns its place, appended = false.
-- Locks:      the session's row, until the transaction ends.
-- Writes:     messages; sessions, at most once an hour.
-- Raises:     CL001 session not found, CL002 another sequence than expected, CL003 id stored with another body,
--             CL005 stale fence, CL007 invalid message, CL008 invalid argument, CL014 batch too large;
--             40001 under REPEATABLE READ and SERIALIZABLE.
-- Example:    select * from chatledger.append_messages('s1',
--                 array['{"message_id": "m1", "role": "user", "content": "hi"}']::jsonb[]);
create or replace function chatledger.append_messages(
    p_session_id text,
    p_messages jsonb[],
    p_user_id text default null,
    p_expected_sequence integer default null,
    p_fence bigint default null
)
returns table (message_id text, sequence integer, created_at timestamptz, appended boolean)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_first       integer;
    v_version     bigint;
    v_now         timestamptz;
    v_hour        timestamptz;
    v_is_watched  boolean;
    v_new         jsonb[] := p_messages;
    v_inserted    integer;
    v_message     jsonb;
begin
    if array_ndims(p_messages) is distinct from 1 or cardinality(p_messages) > 100000 then
        perform chatledger_internal.check_messages(p_messages);
        return;  -- An empty array.
    end if;

    -- 1. Lock. From here on nobody else writes to this session. (This is lock_session without the call, which costs more than
    -- the lock.)
    select s.next_sequence, s.version, s.updated_at, s.active_hour
    into v_first, v_version, v_now, v_hour
    from chatledger.sessions as s
    where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id) and p_fence is null
    for no key update;
    if not found then
        -- Bad messages come first among the refusals.
        perform chatledger_internal.check_messages(p_messages);
        select s.next_sequence, s.version, s.updated_at, s.active_hour
        into v_first, v_version, v_now, v_hour
        from chatledger_internal.lock_session(p_session_id, p_user_id, p_fence) as s;
    end if;

    -- 2. Read the tail: a statement of its own, so that it sees what was committed while the one above waited for the lock.
    select tail.next_sequence, tail.version + 1, greatest(clock_timestamp(), tail.updated_at),
        (select w.watched_until from chatledger.watches as w where w.session_id = p_session_id) is not null
    into v_first, v_version, v_now, v_is_watched
    from chatledger_internal.tail_of(p_session_id, v_first, v_version, v_now) as tail;

    -- 3. Insert. The unique indexes find what is stored, whatever the planner believes of the table; without naming one, so that
    -- REPEATABLE READ fails with 40001 also where the sequence collides with a message that it does not see.
    loop
        insert into chatledger.messages (
            session_id, sequence, message_id, role, content, content_parts, name, tool_call_id, refusal, tool_calls,
            function_call, metadata, duration_ms, extra, version, created_at)
        select
            p_session_id, v_first + input.position::integer - 1, input.message ->> 'message_id', field.role, field.content,
            field.content_parts, field.name, field.tool_call_id, field.refusal, field.tool_calls, field.function_call,
            field.metadata, field.duration_ms, field.extra, v_version, v_now
        from unnest(v_new) with ordinality as input (message, position)
        cross join lateral chatledger_internal.message_columns(input.message) as field
        where input.message ? 'message_id' and chatledger_internal.is_storable(input.message)
        on conflict do nothing;
        get diagnostics v_inserted = row_count;
        exit when v_inserted = cardinality(v_new);

        -- Some cannot be stored, which ends it; or have no id; or are stored already, or come twice in this batch. Take the
        -- others back, since they would leave gaps, and go on with only what is new.
        delete from chatledger.messages as m
        where m.session_id = p_session_id and m.sequence >= v_first and not m.removed;
        p_messages := chatledger_internal.with_ids(p_messages);
        v_new := chatledger_internal.new_messages(p_session_id, p_messages);
    end loop;

    -- 4. Count the session on.
    if v_inserted > 0 then
        -- Only now, when something new was stored: the retry of an append that went through must not conflict with itself.
        if p_expected_sequence <> v_first then
            perform chatledger_internal.raise_sequence_conflict(p_session_id, v_version - 1, v_first,
                p_expected_sequence);
        end if;
        if v_now >= v_hour + interval '1 hour' then
            update chatledger.sessions as s
            set next_sequence = v_first + v_inserted, version = v_version, updated_at = v_now
            where s.id = p_session_id;
        end if;
        if v_is_watched then  -- spares the call where nobody ever followed
            perform chatledger_internal.notify_followers(p_session_id, v_version);
        end if;
    end if;

    -- 5. Answer.
    if v_inserted = cardinality(p_messages) then
        created_at := v_now;
        appended := true;
        sequence := v_first;
        foreach v_message in array p_messages loop
            message_id := v_message ->> 'message_id';
            return next;
            sequence := sequence + 1;
        end loop;
    else
        return query
            select stored.message_id, stored.sequence, stored.created_at,
                stored.version = v_version
                    and 1 = row_number() over (partition by stored.message_id order by input.position)
            from unnest(p_messages) with ordinality as input (message, position)
            cross join lateral (
                select m.message_id, m.sequence, m.created_at, m.version
                from chatledger.messages as m
                where m.session_id = p_session_id and m.message_id = input.message ->> 'message_id'
                limit 1  -- so that each is looked up by its id: see new_messages
            ) as stored
            order by input.position;
    end if;
end
$function$;

revoke all on function chatledger.append_messages(text, jsonb[], text, integer, bigint) from public;
grant execute on function chatledger.append_messages(text, jsonb[], text, integer, bigint) to chatledger_writer;
comment on function chatledger.append_messages(text, jsonb[], text, integer, bigint) is
    'Appends a batch of messages to a session, whole, in order, exactly once.';
