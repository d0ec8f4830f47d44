-- append_messages(p_session_id, p_messages, p_user_id, p_expected_sequence, p_fence)
--     -> (message_id, sequence, created_at, appended), a row a message, in input order
--
-- Appends a batch to a session: whole or not at all, on consecutive sequences, under one timestamp.
--
-- p_session_id         the session; it must exist
-- p_messages           messages in OpenAI's chat format, each with a "message_id" of the caller's; without one an id is
--                      generated, and sending that message again would store it again
-- p_user_id            who asks; null: a trusted caller
-- p_expected_sequence  append only if the session's next sequence is this
-- p_fence              the fence of the stream that writes
--
-- Idempotent: an id that is already stored with the same body, as appended or as amended since, stores nothing and
--         returns its place, appended = false.
-- Lock:   the session's row, until the transaction ends.
-- Raises: CL001 session not found, CL002 another sequence than expected, CL003 id stored with another body,
--         CL005 stale fence, CL007 invalid message, CL008 invalid argument; 40001 under REPEATABLE READ and SERIALIZABLE.
-- Example: select * from chatledger.append_messages('s1',
--              array['{"message_id": "m1", "role": "user", "content": "hi"}']::jsonb[]);
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
    v_first         integer;
    v_updated_at    timestamptz;
    v_watched_until timestamptz;
    v_now           timestamptz;
    v_version       bigint;
    v_new           jsonb[] := p_messages;
    v_inserted      integer;
    v_index         integer;
    v_conflict      text;
    v_message       jsonb;
begin
    if array_ndims(p_messages) is distinct from 1 then
        perform chatledger_internal.check_messages(p_messages);
        return;  -- An empty array.
    end if;

    -- From here on nobody else writes to this session. Each step is a statement of its own, so that it sees what was
    -- committed while this one waited for the lock. (This is lock_session without the call, which costs more than the lock.)
    select s.next_sequence, s.updated_at, s.watched_until
    into v_first, v_updated_at, v_watched_until
    from chatledger.sessions as s
    where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, s.user_id, p_user_id) and p_fence is null
    for no key update;
    if not found then
        -- Bad messages come first among the refusals.
        perform chatledger_internal.check_messages(p_messages);
        select s.next_sequence, s.updated_at, s.watched_until
        into v_first, v_updated_at, v_watched_until
        from chatledger_internal.lock_session(p_session_id, p_user_id, p_fence) as s;
    end if;

    -- Never before the last write, also when the clock stepped back.
    v_now := greatest(clock_timestamp(), v_updated_at);

    loop
        -- The unique index finds the ids that are stored, whatever the planner believes of the table.
        insert into chatledger.messages (
            session_id, sequence, message_id, role, content, content_parts, name, tool_call_id, refusal, tool_calls,
            function_call, metadata, duration_ms, extra, created_at)
        select
            p_session_id, v_first + input.position::integer - 1, input.message ->> 'message_id', field.role, field.content,
            field.content_parts, field.name, field.tool_call_id, field.refusal, field.tool_calls, field.function_call,
            field.metadata, field.duration_ms, field.extra, v_now
        from unnest(v_new) with ordinality as input (message, position)
        cross join lateral chatledger_internal.message_columns(input.message) as field
        where input.message ? 'message_id' and chatledger_internal.is_storable(input.message)
        on conflict (session_id, message_id) do nothing;
        get diagnostics v_inserted = row_count;
        exit when v_inserted = cardinality(v_new);

        -- Some cannot be stored, which ends it; or have no id; or are stored already, or come twice in this batch. Take the
        -- others back, since they would leave gaps, and go on with only what is new.
        perform chatledger_internal.check_messages(p_messages);
        if v_inserted > 0 then
            delete from chatledger.messages as m
            where m.session_id = p_session_id and m.sequence >= v_first
                and m.message_id = any (array(select message ->> 'message_id' from unnest(v_new) as message));
        end if;

        p_messages := array(
            select jsonb_build_object('message_id', gen_random_uuid()) || input.message
            from unnest(p_messages) with ordinality as input (message, position)
            order by input.position);

        -- The same id stands for the same body, or the caller is wrong. A key that is null is as good as none: clients drop
        -- such keys from what they loaded. (Here and below, "limit 1" has each message looked up by its id. A join might read
        -- the whole session, by a plan that the connection made while the table was small.)
        select repeated.position - 1, repeated.id
        into v_index, v_conflict
        from (
            select input.message ->> 'message_id' as id, input.position, body, first_value(body) over same_id as first_body
            from unnest(p_messages) with ordinality as input (message, position)
            cross join lateral chatledger_internal.merge_keys('{}', input.message - 'message_id') as body
            window same_id as (partition by input.message ->> 'message_id' order by input.position)
        ) as repeated
        left join lateral (
            select m.removed, m.original_hash, chatledger.message_body(m) as body
            from chatledger.messages as m
            where m.session_id = p_session_id and m.message_id = repeated.id
            limit 1
        ) as stored on true
        where case
            when stored.body is null then repeated.first_body <> repeated.body
            -- As it was appended, or as it was amended since: a stale copy may hold either.
            else (stored.removed or chatledger_internal.merge_keys('{}', stored.body) <> repeated.body)
                and stored.original_hash is distinct from chatledger_internal.message_hash(repeated.body)
        end
        order by repeated.position
        limit 1;
        if found then
            raise exception using
                errcode = 'CL003',
                message = format('message %s: message_id "%s" is stored in this session with another body',
                    v_index, v_conflict),
                detail = jsonb_build_object('index', v_index, 'field', 'message_id', 'message_id', v_conflict)::text,
                hint = 'Nothing of this batch was stored. Use a new id for a new message, amend_message to change one.';
        end if;

        v_new := array(
            select fresh.message
            from (
                select distinct on (input.message ->> 'message_id') input.message, input.position
                from unnest(p_messages) with ordinality as input (message, position)
                where (
                    select stored.sequence
                    from chatledger.messages as stored
                    where stored.session_id = p_session_id and stored.message_id = input.message ->> 'message_id'
                    limit 1) is null
                order by input.message ->> 'message_id', input.position
            ) as fresh
            order by fresh.position);
    end loop;

    if v_inserted > 0 then
        -- Only now, when something new was stored: the retry of an append that went through must not conflict with itself.
        if p_expected_sequence <> v_first then
            perform chatledger_internal.raise_sequence_conflict(s, p_expected_sequence)
            from chatledger.sessions as s
            where s.id = p_session_id;
        end if;

        update chatledger.sessions as s
        set next_sequence = s.next_sequence + v_inserted, version = s.version + 1, updated_at = v_now
        where s.id = p_session_id
        returning s.version into v_version;
        if v_watched_until is not null then  -- spares the call where nobody ever followed
            perform chatledger_internal.notify_followers(p_session_id, v_watched_until, v_version);
        end if;
    end if;

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
                stored.sequence >= v_first
                    and 1 = row_number() over (partition by stored.message_id order by input.position)
            from unnest(p_messages) with ordinality as input (message, position)
            cross join lateral (
                select m.message_id, m.sequence, m.created_at
                from chatledger.messages as m
                where m.session_id = p_session_id and m.message_id = input.message ->> 'message_id'
                limit 1
            ) as stored
            order by input.position;
    end if;
end
$function$;

revoke all on function chatledger.append_messages(text, jsonb[], text, integer, bigint) from public;
grant execute on function chatledger.append_messages(text, jsonb[], text, integer, bigint) to chatledger_writer;
comment on function chatledger.append_messages(text, jsonb[], text, integer, bigint) is
    'Appends a batch of messages to a session, whole, in order, exactly once.';
