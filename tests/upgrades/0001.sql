begin;
select pg_advisory_xact_lock(hashtext('chatledger.migrations'));
set local check_function_bodies = off;
do $guard$
declare
    v_release text := '0';
    v_changed text;
begin
    if current_setting('server_version_num')::integer < 140000 then
        raise exception using errcode = 'CL012',
            message = 'the server is PostgreSQL ' || current_setting('server_version'),
            hint = 'chatledger needs PostgreSQL 14 or newer.';
    end if;
    if to_regclass('chatledger.migrations') is null then
        return;
    end if;
    if to_regprocedure('chatledger.version()') is not null then
        v_release := chatledger.version();
    end if;
    if string_to_array(v_release, '.')::integer[] > string_to_array('0.1.0', '.')::integer[]
        or exists (select from chatledger.migrations where number > 1)
    then
        raise exception using errcode = 'CL012',
            message = format('the database has release %s, newer than this chatledger (0.1.0)', v_release),
            hint = format('Install chatledger %s or newer.', v_release);
    end if;
    select applied.name into v_changed
    from chatledger.migrations as applied
    join (values
            (1, '01f2c3017b204a06c5ab3ae2273d7668940a2031aef32997da87f0ec679f0509')
    ) as known (number, checksum) using (number)
    where applied.checksum <> known.checksum;
    if found then
        raise exception using errcode = 'CL012',
            message = format('migration %s was applied to this database with other contents', v_changed),
            hint = 'Migrations are never edited once applied. Install an unchanged chatledger.';
    end if;
end
$guard$;

-- The ledger's schema: tables, types, roles. Never edited once landed: a change is the next number.
-- Tables are an implementation detail; the functions (db/functions) and views (db/views) are the contract.

create schema chatledger;
comment on schema chatledger is 'A ledger of conversations. Write only through its functions.';

create table chatledger.migrations (
    number     integer     primary key,
    name       text        not null,
    checksum   text        not null,
    applied_at timestamptz not null default now()
);
comment on table chatledger.migrations is 'Migrations applied to this database, with the SHA-256 of each file.';

-- Every key starts with session_id, so that the tables can be distributed by it.
-- Ids compare as bytes (collate "C"): cheaper, and independent of the database's locale.

create table chatledger.sessions (
    id                text collate "C" primary key,
    user_id           text collate "C",
    title             text,
    metadata          jsonb       not null default '{}',
    pinned            boolean     not null default false,
    status            text        not null default 'active',
    prompt_tokens     bigint      not null default 0,
    completion_tokens bigint      not null default 0,
    total_tokens      bigint      not null default 0,
    next_sequence     integer     not null default 0,
    removed_count     integer     not null default 0,
    version           bigint      not null default 1,
    forked_from       text collate "C",
    forked_at         integer,
    stream_owner      text,
    stream_fence      bigint      not null default 0,
    stream_expires_at timestamptz,
    watched_until     timestamptz,
    created_at        timestamptz not null,
    updated_at        timestamptz not null,
    deleted_at        timestamptz,
    -- What the session lists are ordered by first. An index on updated_at itself would end HOT updates, since every
    -- append changes it; this one changes once an hour, and within the hour the few rows are sorted.
    active_hour       timestamptz generated always as
        (date_bin('1 hour', updated_at, timestamptz '2000-01-01 00:00:00+00')) stored,
    constraint sessions_id_length check (char_length(id) between 1 and 255),
    constraint sessions_metadata_object check (jsonb_typeof(metadata) = 'object')
) with (fillfactor = 70);

create index sessions_by_user on chatledger.sessions (user_id, pinned, active_hour) where deleted_at is null;
create index sessions_by_activity on chatledger.sessions (pinned, active_hour);

comment on table chatledger.sessions is 'A row a session. Locked by every write to the session: the row gives out the sequences.';
comment on column chatledger.sessions.version is 'Counts every committed change of the session.';
comment on column chatledger.sessions.next_sequence is 'Sequence of the next message. Never goes down, also not when messages are removed.';
comment on column chatledger.sessions.removed_count is 'How many messages truncate_session removed.';
comment on column chatledger.sessions.deleted_at is 'When set, the session is gone and only its id is kept, so that a late write cannot bring it back.';
comment on column chatledger.sessions.watched_until is 'Until when somebody follows this session.';

create table chatledger.messages (
    session_id      text collate "C" not null references chatledger.sessions (id) on delete cascade,
    sequence        integer          not null,
    message_id      text collate "C" not null,
    role            text             not null,
    content         text,
    content_parts   jsonb,
    name            text,
    tool_call_id    text,
    refusal         text,
    tool_calls      jsonb,
    function_call   jsonb,
    metadata        jsonb,
    duration_ms     integer,
    extra           jsonb,
    removed         boolean          not null default false,
    amended_version bigint,
    original_hash   bytea,
    created_at      timestamptz      not null,
    primary key (session_id, sequence),
    unique (session_id, message_id)
);

-- Null until a message is amended, so that appends never touch this index.
create index messages_amended on chatledger.messages (session_id, amended_version) where amended_version is not null;

comment on table chatledger.messages is 'A row a message, in a column each the fields of an OpenAI chat message.';
comment on column chatledger.messages.content is 'Content given as text.';
comment on column chatledger.messages.content_parts is 'Content given as a list of parts.';
comment on column chatledger.messages.extra is 'Every key without a column of its own, and known keys that were given as null: what comes in goes out unchanged.';
comment on column chatledger.messages.removed is 'Removed by truncate_session: the row keeps its sequence and id, its content is erased.';
comment on column chatledger.messages.amended_version is 'The session''s version at which this message was last amended; null: never.';
comment on column chatledger.messages.original_hash is 'Hash of the message as it was appended, once it was amended: a retry of the append is compared with it.';

create table chatledger.usage_records (
    session_id        text collate "C" not null references chatledger.sessions (id) on delete cascade,
    usage_id          text collate "C" not null,
    prompt_tokens     bigint           not null,
    completion_tokens bigint           not null,
    total_tokens      bigint           not null,
    created_at        timestamptz      not null,
    primary key (session_id, usage_id)
);
comment on table chatledger.usage_records is 'Token usage, a row a recorded use; the id makes recording it exactly once.';

create table chatledger.added_tool_calls (
    session_id   text collate "C" not null references chatledger.sessions (id) on delete cascade,
    tool_call_id text collate "C" not null,
    sequence     integer          not null,
    primary key (session_id, tool_call_id)
);
comment on table chatledger.added_tool_calls is 'Tool calls attached by add_tool_call, and where: adding one again does nothing, however late.';

create type chatledger.session_header as (
    session_id        text,
    user_id           text,
    title             text,
    metadata          jsonb,
    pinned            boolean,
    status            text,
    prompt_tokens     bigint,
    completion_tokens bigint,
    total_tokens      bigint,
    message_count     integer,
    next_sequence     integer,
    version           bigint,
    forked_from       text,
    forked_at         integer,
    created_at        timestamptz,
    updated_at        timestamptz
);
comment on type chatledger.session_header is 'What the functions return of a session, without its messages.';

-- Roles belong to the whole server: another database's ledger, or somebody who may create roles, has made them already, or
-- is making them now.
do $do$
declare
    v_role text;
begin
    foreach v_role in array array['chatledger_reader', 'chatledger_writer', 'chatledger_admin'] loop
        if to_regrole(v_role) is null then
            begin
                execute format('create role %I nologin', v_role);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
    -- Reader and writer are siblings; the admin is both.
    if not pg_has_role('chatledger_admin', 'chatledger_reader', 'member')
        or not pg_has_role('chatledger_admin', 'chatledger_writer', 'member')
    then
        grant chatledger_reader, chatledger_writer to chatledger_admin;
    end if;
end
$do$;

grant usage on schema chatledger to chatledger_reader, chatledger_writer, chatledger_admin;
grant select on all tables in schema chatledger to chatledger_reader, chatledger_writer;


insert into chatledger.migrations (number, name, checksum)
values (1, '0001_ledger', '01f2c3017b204a06c5ab3ae2273d7668940a2031aef32997da87f0ec679f0509');

-- add_tool_call(p_session_id, p_tool_call, p_user_id, p_message_id, p_fence)
--     -> (message_id, sequence, version, added), one row: the message that holds the call
--
-- Attaches a tool call to the current turn's last assistant message, past tool results; a user message is the boundary.
-- A turn without an assistant message gets one, with empty content.
--
-- p_tool_call   {"id": …, "type": "function", "function": {"name": …, "arguments": …}}
-- p_message_id  id for the message, if one has to be made; null: generated
--
-- Idempotent: a tool call id that was added before, or stands in the current turn, changes nothing; added = false.
-- Lock:   the session's row, so two callers who add a call each both succeed.
-- Raises: CL001 session not found, CL003 p_message_id is used, CL005 stale fence, CL007 invalid tool call; 40001.
-- Example: select * from chatledger.add_tool_call('s1',
--              '{"id": "call_1", "type": "function", "function": {"name": "search", "arguments": "{}"}}');
create or replace function chatledger.add_tool_call(
    p_session_id text,
    p_tool_call jsonb,
    p_user_id text default null,
    p_message_id text default null,
    p_fence bigint default null
)
returns table (message_id text, sequence integer, version bigint, added boolean)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_holder  chatledger.messages;
    v_message chatledger.messages;
    v_body    jsonb;
    v_problem text[];
    v_call_id text := p_tool_call ->> 'id';
begin
    v_problem := chatledger.message_problem(jsonb_build_object('role', 'assistant',
        'tool_calls', jsonb_build_array(p_tool_call)));
    if v_problem is not null then
        raise exception using
            errcode = 'CL007',
            message = format('tool call: %s %s', v_problem[1], v_problem[2]),
            detail = jsonb_build_object('index', 0, 'field', v_problem[1], 'problem', v_problem[2])::text,
            hint = 'Nothing was stored. A tool call has an id and a function with a name.';
    end if;
    if char_length(v_call_id) > 255 then
        perform chatledger.raise_invalid_argument('tool_call.id', 'must have 1 to 255 characters');
    end if;

    v_session := chatledger.lock_session(p_session_id, p_user_id, p_fence);

    -- Added before, be it many turns ago: the same answer again.
    select m.* into v_message
    from chatledger.added_tool_calls as added
    join chatledger.messages as m using (session_id, sequence)
    where added.session_id = p_session_id and added.tool_call_id = v_call_id;
    if found then
        return query select v_message.message_id, v_message.sequence, v_session.version, false;
        return;
    end if;

    -- Walk back through the turn only, not through the session.
    for v_message in
        select m.* from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed
        order by m.sequence desc
    loop
        exit when v_message.role = 'user';
        if v_message.tool_calls @> jsonb_build_array(jsonb_build_object('id', v_call_id)) then
            return query select v_message.message_id, v_message.sequence, v_session.version, false;
            return;
        end if;
        if v_message.role = 'assistant' and v_holder.sequence is null then
            v_holder := v_message;
        end if;
    end loop;

    if v_holder.sequence is null then
        select receipt.message_id, receipt.sequence
        into v_holder.message_id, v_holder.sequence
        from chatledger.append_messages(
            p_session_id,
            array[jsonb_build_object('message_id', coalesce(p_message_id, gen_random_uuid()::text),
                'role', 'assistant', 'content', '', 'tool_calls', jsonb_build_array(p_tool_call))]
        ) as receipt;
    else
        v_body := chatledger.message_body(v_holder);
        v_body := v_body || jsonb_build_object('tool_calls',
            coalesce(nullif(v_body -> 'tool_calls', 'null'), '[]') || jsonb_build_array(p_tool_call));
        perform chatledger.store_amended(v_holder, v_body);
    end if;

    insert into chatledger.added_tool_calls (session_id, tool_call_id, sequence)
    values (p_session_id, v_call_id, v_holder.sequence);

    return query select v_holder.message_id, v_holder.sequence, v_session.version + 1, true;
end
$function$;

revoke all on function chatledger.add_tool_call(text, jsonb, text, text, bigint) from public;
grant execute on function chatledger.add_tool_call(text, jsonb, text, text, bigint) to chatledger_writer;
comment on function chatledger.add_tool_call(text, jsonb, text, text, bigint) is
    'Attaches a tool call to the current turn''s assistant message, exactly once.';


-- amend_message(p_session_id, p_message_id, p_patch, p_expected_version, p_user_id, p_fence)
--     -> (message_id, sequence, version, amended), one row
--
-- Changes a stored message: each key of the patch replaces that field, null removes it; "metadata" is merged key by key.
--
-- p_patch             an object; "role" and "message_id" cannot change
-- p_expected_version  the session's version at which the caller read the message: refuses when it was amended since;
--                     null: amend whatever is there
--
-- version is the session's version after the amendment; amended is false when the message already was like that.
-- Idempotent: the same patch again changes nothing and is not refused.
-- Lock:   the session's row.
-- Raises: CL001 session not found, CL004 amended since, CL005 stale fence, CL007 the patched message is invalid,
--         CL008 invalid argument, CL009 message not found; 40001.
-- Example: select * from chatledger.amend_message('s1', 'm1', '{"content": "hello"}');
create or replace function chatledger.amend_message(
    p_session_id text,
    p_message_id text,
    p_patch jsonb,
    p_expected_version bigint default null,
    p_user_id text default null,
    p_fence bigint default null
)
returns table (message_id text, sequence integer, version bigint, amended boolean)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_message chatledger.messages;
    v_body    jsonb;
    v_patched jsonb;
begin
    if jsonb_typeof(p_patch) is distinct from 'object' then
        perform chatledger.raise_invalid_argument('patch', 'must be a JSON object');
    end if;
    if p_patch ?| '{message_id,role}' then
        perform chatledger.raise_invalid_argument('patch', 'cannot change message_id or role');
    end if;

    v_session := chatledger.lock_session(p_session_id, p_user_id, p_fence);
    v_message := chatledger.stored_message(p_session_id, p_message_id);
    v_body := chatledger.message_body(v_message);
    v_patched := chatledger.patched_body(v_body, p_patch);

    -- Already so: a retry, or somebody had the same wish. Nothing is lost, so nothing is refused.
    if v_patched = v_body then
        return query select v_message.message_id, v_message.sequence, v_session.version, false;
        return;
    end if;
    if v_message.amended_version > p_expected_version then
        perform chatledger.raise_amended_since(v_message, p_expected_version);
    end if;

    return query
        select v_message.message_id, v_message.sequence, chatledger.store_amended(v_message, v_patched), true;
end
$function$;

revoke all on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) from public;
grant execute on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) to chatledger_writer;
comment on function chatledger.amend_message(text, text, jsonb, bigint, text, bigint) is
    'Changes a stored message; refuses when somebody changed it since.';


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
    v_session  chatledger.sessions;
    v_ids      text[];
    v_new      jsonb[] := p_messages;
    v_new_ids  text[];
    v_inserted integer;
    v_index    integer;
    v_conflict text;
    v_now      timestamptz;
begin
    -- Refuse bad input before any lock is taken.
    perform chatledger.check_messages(p_messages);
    if cardinality(p_messages) = 0 then
        return;
    end if;

    v_ids := array(
        select coalesce(input.message ->> 'message_id', gen_random_uuid()::text)
        from unnest(p_messages) with ordinality as input (message, position)
        order by input.position);
    v_new_ids := v_ids;

    -- From here on nobody else writes to this session. Each step is a statement of its own, so that it sees what was
    -- committed while this one waited for the lock.
    v_session := chatledger.lock_session(p_session_id, p_user_id, p_fence);

    -- Never before the last write, also when the clock stepped back.
    v_now := greatest(clock_timestamp(), v_session.updated_at);

    loop
        -- The unique index finds the ids that are stored, whatever the planner believes of the table.
        insert into chatledger.messages (
            session_id, sequence, message_id, role, content, content_parts, name, tool_call_id, refusal, tool_calls,
            function_call, metadata, duration_ms, extra, created_at)
        select
            p_session_id, v_session.next_sequence + input.position::integer - 1, input.id, field.role, field.content,
            field.content_parts, field.name, field.tool_call_id, field.refusal, field.tool_calls, field.function_call,
            field.metadata, field.duration_ms, field.extra, v_now
        from unnest(v_new, v_new_ids) with ordinality as input (message, id, position)
        cross join lateral chatledger.message_columns(input.message) as field
        order by input.position
        on conflict (session_id, message_id) do nothing;
        get diagnostics v_inserted = row_count;
        exit when v_inserted = cardinality(v_new);

        -- Some ids are stored already, or come twice in this batch: take the others back, since they would leave gaps,
        -- and go on with only what is new.
        delete from chatledger.messages as m
        where m.session_id = p_session_id and m.sequence >= v_session.next_sequence;

        -- The same id stands for the same body, or the caller is wrong. A key that is null is as good as none: clients drop
        -- such keys from what they loaded.
        select repeated.position - 1, repeated.id
        into v_index, v_conflict
        from (
            select input.id, input.position, body, first_value(body) over same_id as first_body
            from unnest(p_messages, v_ids) with ordinality as input (message, id, position)
            cross join lateral chatledger.merge_keys('{}', input.message - 'message_id') as body
            window same_id as (partition by input.id order by input.position)
        ) as repeated
        left join chatledger.messages as stored
            on stored.session_id = p_session_id and stored.message_id = repeated.id
        where case
            when stored.message_id is null then repeated.first_body <> repeated.body
            -- As it was appended, or as it was amended since: a stale copy may hold either.
            else (stored.removed or chatledger.merge_keys('{}', chatledger.message_body(stored)) <> repeated.body)
                and stored.original_hash is distinct from chatledger.message_hash(repeated.body)
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

        select coalesce(array_agg(fresh.message order by fresh.position), '{}'),
            coalesce(array_agg(fresh.id order by fresh.position), '{}')
        into v_new, v_new_ids
        from (
            select distinct on (input.id) input.id, input.message, input.position
            from unnest(p_messages, v_ids) with ordinality as input (message, id, position)
            where not exists (
                select from chatledger.messages as stored
                where stored.session_id = p_session_id and stored.message_id = input.id)
            order by input.id, input.position
        ) as fresh;
    end loop;

    if v_inserted > 0 then
        -- Only now, when something new was stored: the retry of an append that went through must not conflict with itself.
        if p_expected_sequence <> v_session.next_sequence then
            perform chatledger.raise_sequence_conflict(v_session, p_expected_sequence);
        end if;

        update chatledger.sessions as s
        set next_sequence = s.next_sequence + v_inserted, version = s.version + 1, updated_at = v_now
        where s.id = p_session_id;
    end if;

    if v_inserted = cardinality(p_messages) then
        return query
            select input.id, v_session.next_sequence + input.position::integer - 1, v_now, true
            from unnest(v_ids) with ordinality as input (id, position)
            order by input.position;
    else
        return query
            select input.id, stored.sequence, stored.created_at,
                stored.sequence >= v_session.next_sequence
                    and 1 = row_number() over (partition by input.id order by input.position)
            from unnest(v_ids) with ordinality as input (id, position)
            join chatledger.messages as stored
                on stored.session_id = p_session_id and stored.message_id = input.id
            order by input.position;
    end if;
end
$function$;

revoke all on function chatledger.append_messages(text, jsonb[], text, integer, bigint) from public;
grant execute on function chatledger.append_messages(text, jsonb[], text, integer, bigint) to chatledger_writer;
comment on function chatledger.append_messages(text, jsonb[], text, integer, bigint) is
    'Appends a batch of messages to a session, whole, in order, exactly once.';


-- apply_amendment(p_session_id, p_amendment, p_read_version) -> boolean, whether the message changed
-- One amendment of save_session, which says what it is, to a message that the caller read at that version of the session. The caller holds the session's lock. Internal.
-- Raises: CL004 amended since, CL007 invalid message, CL009 message not found.
create or replace function chatledger.apply_amendment(p_session_id text, p_amendment jsonb, p_read_version bigint)
returns boolean
language plpgsql
as $function$
declare
    v_message  chatledger.messages;
    v_body     jsonb;
    v_patched  jsonb;
    v_patch    jsonb;
    v_field    text;
begin
    v_message := chatledger.stored_message(p_session_id, p_amendment ->> 'message_id');
    v_body := chatledger.message_body(v_message);

    -- What is neither as the caller saw it nor as it wants it, somebody else changed.
    select change.key into v_field
    from (
        select field.key, nullif(v_body -> field.key, 'null') as stored, field.value
        from jsonb_each(p_amendment -> 'fields') as field
        union all
        select 'metadata.' || field.key, nullif(v_body -> 'metadata' -> field.key, 'null'), field.value
        from jsonb_each(p_amendment -> 'metadata') as field
    ) as change
    where change.stored is distinct from nullif(change.value -> 'from', 'null')
        and change.stored is distinct from nullif(change.value -> 'to', 'null')
    limit 1;
    if found then
        perform chatledger.raise_amended_since(v_message, p_read_version, v_field);
    end if;

    select coalesce(jsonb_object_agg(field.key, coalesce(field.value -> 'to', 'null')), '{}') into v_patch
    from jsonb_each(p_amendment -> 'fields') as field;
    if p_amendment ? 'metadata' then
        v_patch := v_patch || jsonb_build_object('metadata', (
            select jsonb_object_agg(field.key, coalesce(field.value -> 'to', 'null'))
            from jsonb_each(p_amendment -> 'metadata') as field));
    end if;
    v_patched := chatledger.patched_body(v_body, v_patch);

    if p_amendment ? 'add_tool_calls' then
        v_patched := v_patched || jsonb_build_object('tool_calls',
            coalesce(nullif(v_patched -> 'tool_calls', 'null'), '[]') || coalesce((
                select jsonb_agg(added.call order by added.position)
                from (
                    select distinct on (given.call -> 'id') given.call, given.position
                    from jsonb_array_elements(p_amendment -> 'add_tool_calls') with ordinality as given (call, position)
                    order by given.call -> 'id', given.position
                ) as added
                where not coalesce(v_patched -> 'tool_calls'
                    @> jsonb_build_array(jsonb_build_object('id', added.call -> 'id')), false)
            ), '[]'));
    end if;

    if v_patched = v_body then
        return false;
    end if;
    perform chatledger.store_amended(v_message, v_patched);
    return true;
end
$function$;

revoke all on function chatledger.apply_amendment(text, jsonb, bigint) from public;
comment on function chatledger.apply_amendment(text, jsonb, bigint) is 'Internal: one amendment of save_session.';


-- check_messages(p_messages) -> void
-- Refuses an array that cannot be stored whole: CL008 (not a one-dimensional array), CL007 (a bad message; DETAIL has
-- its index and field). Internal.
create or replace function chatledger.check_messages(p_messages jsonb[])
returns void
language plpgsql
immutable
as $function$
declare
    v_index   integer;
    v_problem text[];
begin
    if p_messages is null then
        perform chatledger.raise_invalid_argument('messages', 'is null; expected an array of messages');
    end if;
    if array_ndims(p_messages) > 1 then
        perform chatledger.raise_invalid_argument('messages',
            format('has %s dimensions; expected a plain array of messages', array_ndims(p_messages)));
    end if;

    select input.position - 1, chatledger.message_problem(input.message)
    into v_index, v_problem
    from unnest(p_messages) with ordinality as input (message, position)
    where chatledger.message_problem(input.message) is not null
    limit 1;

    if found then
        raise exception using
            errcode = 'CL007',
            message = concat_ws(' ', format('message %s:', v_index), nullif(v_problem[1], ''), v_problem[2]),
            detail = jsonb_build_object('index', v_index, 'field', v_problem[1], 'problem', v_problem[2])::text,
            hint = 'Nothing of this batch was stored. Correct the message and send the batch again.';
    end if;
end
$function$;

revoke all on function chatledger.check_messages(jsonb[]) from public;
comment on function chatledger.check_messages(jsonb[]) is 'Internal: refuses messages that cannot be stored.';


-- create_session(p_session_id, p_user_id, p_title, p_metadata, p_status) -> chatledger.session_header
--
-- Creates a session. Idempotent: the same id and owner again returns the session as it is, and changes nothing.
--
-- Raises: CL001 the id belongs to another user or to a deleted session, CL008 invalid argument; 40001.
-- Example: select * from chatledger.create_session('s1', 'u1');
create or replace function chatledger.create_session(
    p_session_id text,
    p_user_id text default null,
    p_title text default null,
    p_metadata jsonb default null,
    p_status text default 'active'
)
returns chatledger.session_header
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_now     timestamptz := clock_timestamp();
begin
    if p_session_id is null or char_length(p_session_id) not between 1 and 255 then
        perform chatledger.raise_session_not_found(p_session_id);
    end if;
    if char_length(p_user_id) not between 1 and 255 then
        perform chatledger.raise_invalid_argument('user_id', 'must have 1 to 255 characters, or be null');
    end if;
    if jsonb_typeof(p_metadata) <> 'object' then
        perform chatledger.raise_invalid_argument('metadata', 'must be a JSON object');
    end if;

    insert into chatledger.sessions as s (id, user_id, title, metadata, status, created_at, updated_at)
    values (p_session_id, p_user_id, p_title, coalesce(p_metadata, '{}'), coalesce(p_status, 'active'), v_now, v_now)
    on conflict (id) do nothing
    returning s.* into v_session;

    if not found then
        select s.* into v_session
        from chatledger.sessions as s
        where s.id = p_session_id and s.deleted_at is null and s.user_id is not distinct from p_user_id;
        if not found then
            perform chatledger.raise_session_not_found(p_session_id);
        end if;
    end if;
    return chatledger.header_of(v_session);
end
$function$;

revoke all on function chatledger.create_session(text, text, text, jsonb, text) from public;
grant execute on function chatledger.create_session(text, text, text, jsonb, text) to chatledger_writer;
comment on function chatledger.create_session(text, text, text, jsonb, text) is
    'Creates a session; the same id and owner again returns what is there.';


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
begin
    update chatledger.sessions as s
    set deleted_at = clock_timestamp(), version = s.version + 1, updated_at = greatest(clock_timestamp(), s.updated_at),
        user_id = null, title = null, metadata = '{}', pinned = false, status = 'deleted', next_sequence = 0,
        removed_count = 0, prompt_tokens = 0, completion_tokens = 0, total_tokens = 0, forked_from = null,
        forked_at = null, stream_owner = null, stream_expires_at = null
    where s.id = p_session_id
        and s.deleted_at is null
        and (p_user_id is null or s.user_id = p_user_id);
    if not found then
        return false;
    end if;

    delete from chatledger.messages as m where m.session_id = p_session_id;
    delete from chatledger.usage_records as u where u.session_id = p_session_id;
    delete from chatledger.added_tool_calls as t where t.session_id = p_session_id;
    return true;
end
$function$;

revoke all on function chatledger.delete_session(text, text) from public;
grant execute on function chatledger.delete_session(text, text) to chatledger_writer;
comment on function chatledger.delete_session(text, text) is 'Deletes a session for good.';


-- fork_session(p_session_id, p_new_session_id, p_at_sequence, p_user_id, p_title) -> chatledger.session_header of the fork
--
-- Branches a session: a new one with the same owner and metadata and a copy of the messages up to and including
-- p_at_sequence (null: all), numbered anew from 0. Message ids and times are kept, usage is not.
--
-- p_title  the fork's title; null: the session's
--
-- Idempotent: the same fork again returns it as it is.
-- Raises: CL001 session not found, CL008 invalid argument, CL010 the new id is already used; 40001.
-- Example: select * from chatledger.fork_session('s1', 's1-other-answer', 3);
create or replace function chatledger.fork_session(
    p_session_id text,
    p_new_session_id text,
    p_at_sequence integer default null,
    p_user_id text default null,
    p_title text default null
)
returns chatledger.session_header
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_fork    chatledger.sessions;
    v_count   integer;
begin
    if p_new_session_id is null or char_length(p_new_session_id) not between 1 and 255 then
        perform chatledger.raise_invalid_argument('new_session_id', 'must have 1 to 255 characters');
    end if;
    if p_at_sequence < 0 then
        perform chatledger.raise_invalid_argument('at_sequence', 'must be 0 or more, or null for the whole session');
    end if;

    -- The lock keeps header and messages of one moment.
    v_session := chatledger.lock_session(p_session_id, p_user_id);

    insert into chatledger.sessions as s (
        id, user_id, title, metadata, status, forked_from, forked_at, created_at, updated_at)
    values (
        p_new_session_id, v_session.user_id, coalesce(p_title, v_session.title), v_session.metadata, v_session.status,
        p_session_id, p_at_sequence, clock_timestamp(), greatest(clock_timestamp(), v_session.updated_at))
    on conflict (id) do nothing
    returning s.* into v_fork;

    if not found then
        select s.* into v_fork
        from chatledger.sessions as s
        where s.id = p_new_session_id and s.deleted_at is null and s.forked_from = p_session_id
            and s.forked_at is not distinct from p_at_sequence;
        if not found then
            raise exception using
                errcode = 'CL010',
                message = format('session id "%s" is already used', p_new_session_id),
                detail = jsonb_build_object('session_id', p_new_session_id)::text,
                hint = 'Nothing was stored. Choose a new id for the fork.';
        end if;
        return chatledger.header_of(v_fork);
    end if;

    insert into chatledger.messages (
        session_id, sequence, message_id, role, content, content_parts, name, tool_call_id, refusal, tool_calls,
        function_call, metadata, duration_ms, extra, created_at)
    select
        p_new_session_id, row_number() over (order by m.sequence) - 1, m.message_id, m.role, m.content, m.content_parts,
        m.name, m.tool_call_id, m.refusal, m.tool_calls, m.function_call, m.metadata, m.duration_ms, m.extra, m.created_at
    from chatledger.messages as m
    where m.session_id = p_session_id and not m.removed and (p_at_sequence is null or m.sequence <= p_at_sequence);
    get diagnostics v_count = row_count;

    update chatledger.sessions as s
    set next_sequence = v_count
    where s.id = p_new_session_id
    returning s.* into v_fork;
    return chatledger.header_of(v_fork);
end
$function$;

revoke all on function chatledger.fork_session(text, text, integer, text, text) from public;
grant execute on function chatledger.fork_session(text, text, integer, text, text) to chatledger_writer;
comment on function chatledger.fork_session(text, text, integer, text, text) is
    'Branches a session: a new one with a copy of its messages.';


-- get_messages(p_session_id, p_user_id, p_after, p_before, p_limit) -> messages in order of their sequence
--
-- A page of a session's messages, p_after and p_before excluded.
--
-- Without p_after: the last p_limit messages before p_before (null: the newest). The page before that one is
--     p_before => its first sequence. A page that would start on a tool result reaches back to the assistant message that
--     made the call, so it can hold more than p_limit.
-- With p_after: the first p_limit messages after it. The next page is p_after => its last sequence. A page that would end
--     among tool results goes on to the last of them, so that the next one does not start inside the group.
-- p_limit null: no limit.
--
-- Raises: CL001 session not found, CL008 invalid argument.
-- Example: select sequence, role, content from chatledger.get_messages('s1', p_limit => 20);
create or replace function chatledger.get_messages(
    p_session_id text,
    p_user_id text default null,
    p_after integer default null,
    p_before integer default null,
    p_limit integer default 100
)
returns table (
    sequence integer, message_id text, role text, content text, content_parts jsonb, name text, tool_call_id text,
    refusal text, tool_calls jsonb, function_call jsonb, metadata jsonb, duration_ms integer, extra jsonb,
    amended_version bigint, created_at timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_start integer;
    v_end   integer;
begin
    if p_limit < 1 then
        perform chatledger.raise_invalid_argument('limit', 'must be 1 or more, or null for all');
    end if;
    if not exists (
        select from chatledger.sessions as s
        where s.id = p_session_id and s.deleted_at is null and (p_user_id is null or s.user_id = p_user_id))
    then
        perform chatledger.raise_session_not_found(p_session_id);
    end if;

    if p_after is null then
        v_start := chatledger.page_start(p_session_id, p_before, p_limit);
        v_end := p_before;
    else
        v_start := greatest(p_after, -1) + 1;
        if p_limit is not null then
            -- The first message after the page, past the tool results that belong to its last one.
            select m.sequence into v_end
            from chatledger.messages as m
            where m.session_id = p_session_id and not m.removed and m.role <> 'tool'
                and m.sequence >= (
                    select next_page.sequence
                    from chatledger.messages as next_page
                    where next_page.session_id = p_session_id and not next_page.removed
                        and next_page.sequence >= v_start
                    order by next_page.sequence
                    offset p_limit limit 1)
            order by m.sequence
            limit 1;
        end if;
        v_end := least(v_end, p_before);
    end if;

    return query
        select m.sequence, m.message_id, m.role, m.content, m.content_parts, m.name, m.tool_call_id, m.refusal,
            m.tool_calls, m.function_call, m.metadata, m.duration_ms, m.extra, m.amended_version, m.created_at
        from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed
            and m.sequence >= v_start and (v_end is null or m.sequence < v_end)
        order by m.sequence;
end
$function$;

revoke all on function chatledger.get_messages(text, text, integer, integer, integer) from public;
grant execute on function chatledger.get_messages(text, text, integer, integer, integer) to chatledger_reader, chatledger_writer;
comment on function chatledger.get_messages(text, text, integer, integer, integer) is 'A page of a session''s messages.';


-- header_of(p_session) -> chatledger.session_header
-- What the functions return of a session's row. Internal.
create or replace function chatledger.header_of(p_session chatledger.sessions)
returns chatledger.session_header
language sql
immutable
as $function$
    select (p_session.id, p_session.user_id, p_session.title, p_session.metadata, p_session.pinned, p_session.status,
        p_session.prompt_tokens, p_session.completion_tokens, p_session.total_tokens,
        p_session.next_sequence - p_session.removed_count, p_session.next_sequence, p_session.version,
        p_session.forked_from, p_session.forked_at, p_session.created_at, p_session.updated_at
    )::chatledger.session_header
$function$;

revoke all on function chatledger.header_of(chatledger.sessions) from public;
comment on function chatledger.header_of(chatledger.sessions) is 'Internal: a session''s row as a header.';


-- list_sessions(p_user_id, p_limit, p_cursor, p_title, p_status) -> headers, pinned first, then last changed first
--
-- A page of a user's sessions (p_user_id null: of everybody's).
--
-- p_cursor  "cursor" of the last row of the page before
-- p_title   only titles that contain this, in upper or lower case
-- p_status  only sessions with this status
--
-- A session that changes while somebody pages moves to the front; nothing else moves.
-- Raises: CL008 invalid argument.
-- Example: select session_id, title, updated_at from chatledger.list_sessions('u1', p_limit => 20);
create or replace function chatledger.list_sessions(
    p_user_id text,
    p_limit integer default 50,
    p_cursor text default null,
    p_title text default null,
    p_status text default null
)
returns table (
    session_id text, user_id text, title text, metadata jsonb, pinned boolean, status text, prompt_tokens bigint,
    completion_tokens bigint, total_tokens bigint, message_count integer, next_sequence integer, version bigint,
    forked_from text, forked_at integer, created_at timestamptz, updated_at timestamptz, cursor text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
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
        perform chatledger.raise_invalid_argument('limit', 'must be from 1 to 1000');
    end if;
    if p_cursor is not null then
        if p_cursor !~ '^[tf]/[0-9]{1,17}/.' then
            perform chatledger.raise_invalid_argument('cursor', 'is not one that list_sessions returned');
        end if;
        v_pinned := left(p_cursor, 1) = 't';
        v_updated := timestamptz 'epoch' + split_part(p_cursor, '/', 2)::bigint * interval '1 microsecond';
        v_id := substr(p_cursor, length(split_part(p_cursor, '/', 2)) + 4);
        v_hour := date_bin('1 hour', v_updated, timestamptz '2000-01-01 00:00:00+00');
    end if;

    -- The index gives pinned and active_hour in order; only the rows of an hour are sorted by updated_at. (Two statements,
    -- since one for both would not use the index.)
    if p_user_id is not null then
        return query
            select header.*, concat(s.pinned::text::char(1), '/',
                (extract(epoch from s.updated_at) * 1000000)::bigint, '/', s.id)
            from chatledger.sessions as s
            cross join lateral chatledger.header_of(s) as header
            where s.user_id = p_user_id and s.deleted_at is null
                and (s.pinned, s.active_hour) <= (v_pinned, v_hour)
                and (s.pinned, s.active_hour, s.updated_at, s.id) < (v_pinned, v_hour, v_updated, v_id)
                and (p_title is null or position(lower(p_title) in lower(s.title)) > 0)
                and (p_status is null or s.status = p_status)
            order by s.pinned desc, s.active_hour desc, s.updated_at desc, s.id desc
            limit p_limit;
    else
        return query
            select header.*, concat(s.pinned::text::char(1), '/',
                (extract(epoch from s.updated_at) * 1000000)::bigint, '/', s.id)
            from chatledger.sessions as s
            cross join lateral chatledger.header_of(s) as header
            where s.deleted_at is null
                and (s.pinned, s.active_hour) <= (v_pinned, v_hour)
                and (s.pinned, s.active_hour, s.updated_at, s.id) < (v_pinned, v_hour, v_updated, v_id)
                and (p_title is null or position(lower(p_title) in lower(s.title)) > 0)
                and (p_status is null or s.status = p_status)
            order by s.pinned desc, s.active_hour desc, s.updated_at desc, s.id desc
            limit p_limit;
    end if;
end
$function$;

revoke all on function chatledger.list_sessions(text, integer, text, text, text) from public;
grant execute on function chatledger.list_sessions(text, integer, text, text, text) to chatledger_reader, chatledger_writer;
comment on function chatledger.list_sessions(text, integer, text, text, text) is 'A page of a user''s sessions.';


-- lock_session(p_session_id, p_user_id, p_fence) -> chatledger.sessions
-- The session's row, locked until the transaction ends: from here on nobody else changes the session. Every write takes
-- this lock first and no other of ours before it, so that calls for one session queue and never deadlock.
-- Raises CL001 (missing, deleted, not this user's), CL005 (the fence is not the current lease's), 40001 (REPEATABLE READ
-- and SERIALIZABLE: somebody changed the session since the transaction's snapshot). Internal.
create or replace function chatledger.lock_session(p_session_id text, p_user_id text, p_fence bigint default null)
returns chatledger.sessions
language plpgsql
as $function$
declare
    v_session chatledger.sessions;
begin
    -- "no key update": "for update" would block the foreign key checks of other transactions.
    select s.* into v_session
    from chatledger.sessions as s
    where s.id = p_session_id
        and s.deleted_at is null
        and (p_user_id is null or s.user_id = p_user_id)
    for no key update;

    if not found then
        perform chatledger.raise_session_not_found(p_session_id);
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

revoke all on function chatledger.lock_session(text, text, bigint) from public;
comment on function chatledger.lock_session(text, text, bigint) is 'Internal: locks and checks a session''s row.';


-- merge_keys(p_object, p_patch) -> jsonb
-- Sets each key of the patch, removes those that it gives as null, leaves the others. Internal.
create or replace function chatledger.merge_keys(p_object jsonb, p_patch jsonb)
returns jsonb
language sql
stable
as $function$
    select (coalesce(p_object, '{}') || p_patch)
        - array(select field.key from jsonb_each(p_patch) as field where field.value = 'null')
$function$;

revoke all on function chatledger.merge_keys(jsonb, jsonb) from public;
comment on function chatledger.merge_keys(jsonb, jsonb) is 'Internal: merges metadata key by key.';


-- message_body(p_message) -> jsonb
-- The message as it came in, without its message_id: in OpenAI's chat format, unknown keys and nulls included. The
-- inverse of message_columns.
-- Example: select sequence, chatledger.message_body(m) from chatledger.messages m where session_id = 's1' order by 1;
create or replace function chatledger.message_body(p_message chatledger.messages)
returns jsonb
language sql
stable
as $function$
    select jsonb_object_agg(field.key, field.value) || coalesce(p_message.extra, '{}')
    from (values
        ('role', to_jsonb(p_message.role)),
        ('content', coalesce(to_jsonb(p_message.content), p_message.content_parts)),
        ('name', to_jsonb(p_message.name)),
        ('tool_call_id', to_jsonb(p_message.tool_call_id)),
        ('refusal', to_jsonb(p_message.refusal)),
        ('tool_calls', p_message.tool_calls),
        ('function_call', p_message.function_call),
        ('metadata', p_message.metadata),
        ('duration_ms', to_jsonb(p_message.duration_ms))
    ) as field (key, value)
    where field.value is not null
$function$;

revoke all on function chatledger.message_body(chatledger.messages) from public;
grant execute on function chatledger.message_body(chatledger.messages) to chatledger_reader, chatledger_writer;
comment on function chatledger.message_body(chatledger.messages) is 'A stored message as JSON, as it came in.';


-- message_columns(p_message) -> the columns of chatledger.messages that hold a message's own fields
-- Takes a valid message apart; message_body puts it together again. Internal; inlined by Postgres, so stable, which is what
-- jsonb_object_agg is: a body that is less immutable than its function is not inlined.
create or replace function chatledger.message_columns(p_message jsonb)
returns table (
    role text, content text, content_parts jsonb, name text, tool_call_id text, refusal text, tool_calls jsonb,
    function_call jsonb, metadata jsonb, duration_ms integer, extra jsonb
)
language sql
stable
as $function$
    select
        p_message ->> 'role',
        case jsonb_typeof(p_message -> 'content') when 'string' then p_message ->> 'content' end,
        case jsonb_typeof(p_message -> 'content') when 'array' then p_message -> 'content' end,
        p_message ->> 'name',
        p_message ->> 'tool_call_id',
        p_message ->> 'refusal',
        nullif(p_message -> 'tool_calls', 'null'),
        nullif(p_message -> 'function_call', 'null'),
        nullif(p_message -> 'metadata', 'null'),
        case jsonb_typeof(p_message -> 'duration_ms') when 'number' then (p_message -> 'duration_ms')::integer end,
        case
            -- Nulls are rare; only they make it worth looking at every key.
            when p_message @? '$.* ? (@ == null)' then (
                select jsonb_object_agg(field.key, field.value)
                from jsonb_each(p_message) as field
                where field.value = 'null'
                    or field.key not in ('message_id', 'role', 'content', 'name', 'tool_call_id', 'refusal',
                        'tool_calls', 'function_call', 'metadata', 'duration_ms'))
            else nullif(p_message - '{message_id,role,content,name,tool_call_id,refusal,tool_calls,function_call,'
                'metadata,duration_ms}'::text[], '{}')
        end
$function$;

revoke all on function chatledger.message_columns(jsonb) from public;
comment on function chatledger.message_columns(jsonb) is 'Internal: a message taken apart into columns.';


-- message_hash(p_body) -> bytea
-- What stands for a message's body once the row no longer holds it, because it was amended or removed. A duration of 7.0 is
-- stored as 7, so both hash alike; so do a key that is null and one that is missing. Internal.
create or replace function chatledger.message_hash(p_body jsonb)
returns bytea
language sql
stable
as $function$
    select sha256(convert_to((
        case jsonb_typeof(p_body -> 'duration_ms')
            when 'number' then jsonb_set(body, '{duration_ms}', to_jsonb((p_body -> 'duration_ms')::integer))
            else body
        end)::text, 'UTF8'))
    from chatledger.merge_keys('{}', p_body) as body
$function$;

revoke all on function chatledger.message_hash(jsonb) from public;
comment on function chatledger.message_hash(jsonb) is 'Internal: a hash of a message''s body.';


-- message_problem(p_message) -> text[]
-- What is wrong with a message: array[field, problem], or null when it can be stored. Never quotes the message's
-- content, since problems end in logs. Internal; one expression of immutable parts, so that Postgres inlines it: a call that
-- is not inlined costs more than all the rest of an append.
create or replace function chatledger.message_problem(p_message jsonb)
returns text[]
language sql
immutable
as $function$
    select case
        when p_message is null then
            array['', 'is null; expected a JSON object']
        when jsonb_typeof(p_message) <> 'object' then
            array['', 'is a JSON ' || jsonb_typeof(p_message) || '; expected an object']
        when not p_message ? 'role' then
            array['role', 'is missing']
        when jsonb_typeof(p_message -> 'role') <> 'string'
            or not p_message ->> 'role' = any ('{system,developer,user,assistant,tool,function}') then
            array['role', 'is unknown; expected system, developer, user, assistant, tool or function']
        when p_message ? 'message_id' and (jsonb_typeof(p_message -> 'message_id') <> 'string'
            or char_length(p_message ->> 'message_id') not between 1 and 255) then
            array['message_id', 'must be a string of 1 to 255 characters']
        when p_message ? 'content' and jsonb_typeof(p_message -> 'content') not in ('string', 'null')
            and not (jsonb_typeof(p_message -> 'content') = 'array'
                and not p_message -> 'content' @? 'strict $[*] ? (@.type() <> "object")') then
            array['content', 'must be a string, a list of objects or null']
        when p_message ->> 'role' = 'tool' and (not p_message ? 'tool_call_id'
            or jsonb_typeof(p_message -> 'tool_call_id') <> 'string' or p_message ->> 'tool_call_id' = '') then
            array['tool_call_id', 'is missing: a tool message names the call that it answers']
        when p_message ? 'tool_call_id' and jsonb_typeof(p_message -> 'tool_call_id') not in ('string', 'null') then
            array['tool_call_id', 'must be a string']
        when p_message ? 'tool_calls' and jsonb_typeof(p_message -> 'tool_calls') <> 'null'
            and not (jsonb_typeof(p_message -> 'tool_calls') = 'array'
                and not p_message -> 'tool_calls' @? 'strict $[*] ? (@.type() <> "object")') then
            array['tool_calls', 'must be a list of objects']
        -- Strict paths, since lax ones look into arrays; counted, since in strict mode a missing key is neither true nor
        -- false.
        when jsonb_typeof(p_message -> 'tool_calls') = 'array'
            and jsonb_array_length(p_message -> 'tool_calls') > jsonb_array_length(jsonb_path_query_array(
                p_message -> 'tool_calls', 'strict $[*] ? (@.id.type() == "string" && @.id <> "")')) then
            array['tool_calls', 'has a tool call without an id']
        when jsonb_typeof(p_message -> 'tool_calls') = 'array'
            and jsonb_array_length(p_message -> 'tool_calls') > jsonb_array_length(jsonb_path_query_array(
                p_message -> 'tool_calls', 'strict $[*] ? (@.function.name.type() == "string" && @.function.name <> ""
                    || @.custom.name.type() == "string" && @.custom.name <> "")')) then
            array['tool_calls', 'has a tool call without a function name']
        when p_message ? 'function_call' and jsonb_typeof(p_message -> 'function_call') not in ('object', 'null') then
            array['function_call', 'must be an object']
        when p_message ? 'name' and jsonb_typeof(p_message -> 'name') not in ('string', 'null') then
            array['name', 'must be a string']
        when p_message ? 'refusal' and jsonb_typeof(p_message -> 'refusal') not in ('string', 'null') then
            array['refusal', 'must be a string']
        when p_message ? 'metadata' and jsonb_typeof(p_message -> 'metadata') not in ('object', 'null') then
            array['metadata', 'must be an object']
        when p_message ? 'duration_ms' and jsonb_typeof(p_message -> 'duration_ms') <> 'null'
            and not p_message -> 'duration_ms' @? 'strict $ ? (@ >= 0 && @ <= 2147483647 && @ == @.floor())' then
            array['duration_ms', 'must be a whole number of milliseconds']
    end
$function$;

revoke all on function chatledger.message_problem(jsonb) from public;
comment on function chatledger.message_problem(jsonb) is 'Internal: what is wrong with a message, or null.';


-- page_start(p_session_id, p_before, p_limit) -> integer
-- Sequence at which the page of the last p_limit messages before p_before (null: the end) starts. A page that would start
-- on a tool result reaches back to the assistant message that made the call. Null when there is no message. Internal.
create or replace function chatledger.page_start(p_session_id text, p_before integer, p_limit integer)
returns integer
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_first chatledger.messages;
    v_owner integer;
begin
    select page.* into v_first
    from (
        select m.*
        from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed and (p_before is null or m.sequence < p_before)
        order by m.sequence desc
        limit p_limit
    ) as page
    order by page.sequence
    limit 1;

    if v_first.role = 'tool' then
        select m.sequence into v_owner
        from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed and m.sequence < v_first.sequence and m.role = 'assistant'
            and m.tool_calls @> jsonb_build_array(jsonb_build_object('id', v_first.tool_call_id))
        order by m.sequence desc
        limit 1;
    end if;
    return coalesce(v_owner, v_first.sequence);
end
$function$;

revoke all on function chatledger.page_start(text, integer, integer) from public;
comment on function chatledger.page_start(text, integer, integer) is 'Internal: where a page of messages starts.';


-- patched_body(p_body, p_patch) -> jsonb
-- A message's body with each key of the patch set, or removed where it is null; "metadata" is merged key by key. Internal.
create or replace function chatledger.patched_body(p_body jsonb, p_patch jsonb)
returns jsonb
language sql
stable
as $function$
    select case jsonb_typeof(p_patch -> 'metadata')
        when 'object' then chatledger.merge_keys(p_body, p_patch) || jsonb_build_object('metadata',
            chatledger.merge_keys(nullif(p_body -> 'metadata', 'null'), p_patch -> 'metadata'))
        else chatledger.merge_keys(p_body, p_patch)
    end
$function$;

revoke all on function chatledger.patched_body(jsonb, jsonb) from public;
comment on function chatledger.patched_body(jsonb, jsonb) is 'Internal: a message''s body with a patch applied.';


-- purge_sessions(p_older_than, p_limit) -> integer, how many sessions went
--
-- Removes sessions that nobody changed for so long, and the ids of sessions deleted so long ago. One bounded batch a
-- call, so that locks and the transaction stay short: call again until it returns 0. Sessions that somebody is writing
-- to are left out.
--
-- Lock:   the rows of the batch.
-- Raises: CL008 invalid argument.
-- Example: select chatledger.purge_sessions('180 days');
create or replace function chatledger.purge_sessions(p_older_than interval, p_limit integer default 1000)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_before timestamptz;
    v_purged integer;
begin
    if p_older_than is null or p_older_than not between interval '0' and interval '1000 years' then
        perform chatledger.raise_invalid_argument('older_than', 'must be an interval from 0 to 1000 years');
    end if;
    if p_limit is null or p_limit not between 1 and 100000 then
        perform chatledger.raise_invalid_argument('limit', 'must be from 1 to 100000');
    end if;

    v_before := clock_timestamp() - p_older_than;
    -- Messages and all else go with the row, by their foreign keys.
    delete from chatledger.sessions as s
    where s.id = any (array(
        select old.id
        from chatledger.sessions as old
        where old.pinned in (false, true) and old.active_hour <= v_before and old.updated_at < v_before
        limit p_limit
        for update skip locked));
    get diagnostics v_purged = row_count;
    return v_purged;
end
$function$;

revoke all on function chatledger.purge_sessions(interval, integer) from public;
grant execute on function chatledger.purge_sessions(interval, integer) to chatledger_admin;
comment on function chatledger.purge_sessions(interval, integer) is 'Retention: removes old sessions, a bounded batch a call.';


-- raise_amended_since(p_message, p_expected_version, p_field) -> never returns
-- CL004: somebody changed the message, or this field of it, since the caller read it. Internal.
create or replace function chatledger.raise_amended_since(
    p_message chatledger.messages,
    p_expected_version bigint,
    p_field text default null
)
returns void
language plpgsql
immutable
as $function$
begin
    raise exception using
        errcode = 'CL004',
        message = format('message "%s" is not as you read it at version %s%s', p_message.message_id, p_expected_version,
            ': it was amended at version ' || p_message.amended_version),
        detail = jsonb_strip_nulls(jsonb_build_object('session_id', p_message.session_id,
            'message_id', p_message.message_id, 'field', p_field, 'expected_version', p_expected_version,
            'amended_version', p_message.amended_version))::text,
        hint = 'Nothing was changed. Read the message again, then decide what yours should become.';
end
$function$;

revoke all on function chatledger.raise_amended_since(chatledger.messages, bigint, text) from public;
comment on function chatledger.raise_amended_since(chatledger.messages, bigint, text) is 'Internal: raises CL004.';


-- raise_invalid_argument(p_argument, p_problem) -> never returns
-- CL008: an argument that no call can have. Internal.
create or replace function chatledger.raise_invalid_argument(p_argument text, p_problem text)
returns void
language plpgsql
immutable
as $function$
begin
    raise exception using
        errcode = 'CL008',
        message = format('%s %s', p_argument, p_problem),
        detail = jsonb_build_object('argument', p_argument)::text,
        hint = 'Correct the argument and call again.';
end
$function$;

revoke all on function chatledger.raise_invalid_argument(text, text) from public;
comment on function chatledger.raise_invalid_argument(text, text) is 'Internal: raises CL008.';


-- raise_sequence_conflict(p_session, p_expected_sequence) -> never returns
-- CL002: the session does not go on where the caller expected. Internal.
create or replace function chatledger.raise_sequence_conflict(p_session chatledger.sessions, p_expected_sequence integer)
returns void
language plpgsql
immutable
as $function$
begin
    raise exception using
        errcode = 'CL002',
        message = format('session "%s" goes on at sequence %s, not %s',
            p_session.id, p_session.next_sequence, p_expected_sequence),
        detail = jsonb_build_object('session_id', p_session.id, 'expected_sequence', p_expected_sequence,
            'next_sequence', p_session.next_sequence, 'version', p_session.version)::text,
        hint = 'Nothing was changed. Somebody appended since: read what is new, then decide again.';
end
$function$;

revoke all on function chatledger.raise_sequence_conflict(chatledger.sessions, integer) from public;
comment on function chatledger.raise_sequence_conflict(chatledger.sessions, integer) is 'Internal: raises CL002.';


-- raise_session_not_found(p_session_id) -> never returns
-- One answer for a session that is missing, deleted or somebody else's (CL001), so that ids cannot be probed. An id that
-- no session can have is an error of the caller's (CL008). Internal.
create or replace function chatledger.raise_session_not_found(p_session_id text)
returns void
language plpgsql
immutable
as $function$
begin
    if p_session_id is null or char_length(p_session_id) not between 1 and 255 then
        raise exception using
            errcode = 'CL008',
            message = 'session_id must have 1 to 255 characters',
            detail = jsonb_build_object('argument', 'session_id')::text,
            hint = 'Pass the id that the session was created with.';
    end if;
    raise exception using
        errcode = 'CL001',
        message = format('session "%s" not found', p_session_id),
        detail = jsonb_build_object('session_id', p_session_id)::text,
        hint = 'It was never created, was deleted, or belongs to another user. Ids of deleted sessions cannot be used again.';
end
$function$;

revoke all on function chatledger.raise_session_not_found(text) from public;
comment on function chatledger.raise_session_not_found(text) is 'Internal: raises CL001.';


-- read_session(p_session_id, p_user_id, p_since_version, p_since_sequence, p_last)
--     -> a row with the header in "session", then a row a message, in order of their sequence
--
-- A session and its messages, of one moment, in one call. No row at all when the session is missing, deleted or another
-- user's.
--
-- p_since_version, p_since_sequence  the header's version and next_sequence of an earlier read: only what changed since,
--     that is new messages, and earlier ones that were amended or removed (removed = true, without content). Both or none.
-- p_last  only the last so many messages, reaching back like get_messages
--
-- Stable, so that all its statements see the snapshot of the calling query.
-- Raises: CL008 invalid argument.
-- Example: select session, sequence, role, content from chatledger.read_session('s1');
create or replace function chatledger.read_session(
    p_session_id text,
    p_user_id text default null,
    p_since_version bigint default null,
    p_since_sequence integer default null,
    p_last integer default null
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
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_start   integer := 0;
begin
    if p_last < 1 then
        perform chatledger.raise_invalid_argument('last', 'must be 1 or more, or null for all');
    end if;
    if (p_since_version is null) <> (p_since_sequence is null) then
        perform chatledger.raise_invalid_argument('since_version', 'and since_sequence go together');
    end if;

    select s.* into v_session
    from chatledger.sessions as s
    where s.id = p_session_id and s.deleted_at is null and (p_user_id is null or s.user_id = p_user_id);
    if not found then
        return;
    end if;

    return query
        select to_jsonb(chatledger.header_of(v_session)), null::integer, null::text, null::text, null::text, null::jsonb,
            null::text, null::text, null::text, null::jsonb, null::jsonb, null::jsonb, null::integer, null::jsonb,
            null::bigint, null::timestamptz, null::boolean;
    if v_session.version = p_since_version then
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
        v_start := p_since_sequence;
    end if;
    if p_last is not null then
        v_start := greatest(v_start, chatledger.page_start(p_session_id, null, p_last));
    end if;

    return query
        select null::jsonb, m.sequence, m.message_id, m.role, m.content, m.content_parts, m.name, m.tool_call_id,
            m.refusal, m.tool_calls, m.function_call, m.metadata, m.duration_ms, m.extra, m.amended_version,
            m.created_at, m.removed
        from chatledger.messages as m
        where m.session_id = p_session_id and m.sequence >= v_start and not m.removed
        order by m.sequence;
end
$function$;

revoke all on function chatledger.read_session(text, text, bigint, integer, integer) from public;
grant execute on function chatledger.read_session(text, text, bigint, integer, integer) to chatledger_reader, chatledger_writer;
comment on function chatledger.read_session(text, text, bigint, integer, integer) is
    'A session and its messages, or what changed since a version.';


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
    return chatledger.header_of(v_session);
end
$function$;

revoke all on function chatledger.record_usage(text, text, bigint, bigint, bigint, text) from public;
grant execute on function chatledger.record_usage(text, text, bigint, bigint, bigint, text) to chatledger_writer;
comment on function chatledger.record_usage(text, text, bigint, bigint, bigint, text) is
    'Adds token usage to a session, exactly once for each id.';


-- save_session(p_session_id, p_user_id, p_read_version, p_header, p_messages, p_amendments, p_usage, p_fence)
--     -> a row with the header in "session" and the version before in "version_before", then a row a message that was
--        appended or amended: (message_id, sequence, created_at, amended_version)
--
-- Saves what one caller changed in its copy of a session, in one call: whole or not at all. Changes come as {"from", "to"}:
-- what the caller saw and what it wants; without "from" or "to" the value was, or is to be, absent.
--
-- p_read_version  the session's version that the caller read; null or 0: it never saved this session, so create it.
--               Otherwise one that is gone stays gone.
-- p_header      changes of "title", "pinned", "status", and of keys of "metadata". One that somebody else changed since
--               stays as they left it: the returned header tells.
-- p_messages    new messages, as for append_messages
-- p_amendments  objects {"message_id", "fields": changes, "metadata": changes of its keys, "add_tool_calls": […]}. A field
--               that somebody else changed since is refused; a tool call whose id the message has is passed over.
-- p_usage       objects {"usage_id", "prompt_tokens", "completion_tokens", "total_tokens"}, each added exactly once
-- p_fence       the fence of the stream that writes
--
-- Idempotent: the same call again changes nothing.
-- Lock:   the session's row.
-- Raises: CL001 session not found, CL003 message id conflict, CL004 amended since, CL005 stale fence, CL007 invalid message,
--         CL008 invalid argument, CL009 message not found, CL011 usage id conflict; 40001.
-- Example: select session ->> 'title' as title, message_id, sequence from chatledger.save_session('s1',
--              p_header => '{"title": {"to": "Trip to Oslo"}}',
--              p_messages => array['{"message_id": "m2", "role": "user", "content": "When?"}']::jsonb[]);
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
    v_before    bigint;
    v_metadata  jsonb;
    v_amendment jsonb;
    v_usage     jsonb;
    v_amended   text[] := '{}';
    v_appended  text[] := '{}';
    v_later     jsonb[] := '{}';
begin
    if coalesce(p_read_version, 0) = 0 then
        perform chatledger.create_session(p_session_id, p_user_id);
    end if;
    v_session := chatledger.lock_session(p_session_id, p_user_id, p_fence);
    v_before := v_session.version;

    -- Only what still is as the caller saw it. (update_session leaves what it is given as null.)
    select jsonb_object_agg(change.key, coalesce(change.value -> 'to', 'null')) into v_metadata
    from jsonb_each(p_header -> 'metadata') as change
    where v_session.metadata -> change.key is not distinct from change.value -> 'from';
    perform chatledger.update_session(
        p_session_id,
        p_title => case when v_session.title is not distinct from p_header #>> '{title,from}'
            then coalesce(p_header #>> '{title,to}', case when p_header ? 'title' then '' end) end,
        p_metadata => v_metadata,
        p_pinned => case when v_session.pinned = (p_header #>> '{pinned,from}')::boolean
            then (p_header #>> '{pinned,to}')::boolean end,
        p_status => case when v_session.status = p_header #>> '{status,from}' then p_header #>> '{status,to}' end);

    foreach v_amendment in array p_amendments loop
        if not exists (
            select from chatledger.messages as m
            where m.session_id = p_session_id and m.message_id = v_amendment ->> 'message_id')
        then
            -- Of a new message: one that the caller changed after it had sent it and got no answer.
            v_later := v_later || v_amendment;
        elsif chatledger.apply_amendment(p_session_id, v_amendment, p_read_version) then
            v_amended := v_amended || (v_amendment ->> 'message_id');
        end if;
    end loop;

    foreach v_usage in array p_usage loop
        perform chatledger.record_usage(p_session_id, v_usage ->> 'usage_id', (v_usage ->> 'prompt_tokens')::bigint,
            (v_usage ->> 'completion_tokens')::bigint, (v_usage ->> 'total_tokens')::bigint);
    end loop;

    -- After all else, so that the batch's timestamp is the session's.
    v_appended := array(
        select receipt.message_id from chatledger.append_messages(p_session_id, p_messages) as receipt);

    foreach v_amendment in array v_later loop
        perform chatledger.apply_amendment(p_session_id, v_amendment, p_read_version);
    end loop;

    return query
        select to_jsonb(chatledger.header_of(s)), v_before, null::text, null::integer, null::timestamptz, null::bigint
        from chatledger.sessions as s
        where s.id = p_session_id;
    return query
        select null::jsonb, null::bigint, m.message_id, m.sequence, m.created_at, m.amended_version
        from unnest(v_amended || v_appended) as wanted (id)
        cross join lateral (
            select stored.message_id, stored.sequence, stored.created_at, stored.amended_version
            from chatledger.messages as stored
            where stored.session_id = p_session_id and stored.message_id = wanted.id
        ) as m
        order by m.sequence;
end
$function$;

revoke all on function chatledger.save_session(text, text, bigint, jsonb, jsonb[], jsonb[], jsonb[], bigint) from public;
grant execute on function chatledger.save_session(text, text, bigint, jsonb, jsonb[], jsonb[], jsonb[], bigint)
    to chatledger_writer;
comment on function chatledger.save_session(text, text, bigint, jsonb, jsonb[], jsonb[], jsonb[], bigint) is
    'Saves what one caller changed in its copy of a session, whole, without undoing what others changed.';


-- status() -> (item, value), a row an item
--
-- Health at a glance. Counts of sessions and messages are the planner's estimates, so that it is cheap on any size.
--
-- Example: select * from chatledger.status();
create or replace function chatledger.status()
returns table (item text, value text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select 'release', chatledger.version()
    union all select 'schema', (select max(m.number)::text from chatledger.migrations as m)
    union all select 'server', current_setting('server_version')
    union all select 'sessions (estimate)', (
        select greatest(c.reltuples, 0)::bigint::text from pg_class as c where c.oid = 'chatledger.sessions'::regclass)
    union all select 'messages (estimate)', (
        select greatest(c.reltuples, 0)::bigint::text from pg_class as c where c.oid = 'chatledger.messages'::regclass)
    union all select 'size', (
        select pg_size_pretty(sum(pg_total_relation_size(c.oid)))
        from pg_class as c where c.relnamespace = 'chatledger'::regnamespace and c.relkind = 'r')
    union all select 'last change', (
        select max(s.updated_at)::text from (
            (select s.updated_at from chatledger.sessions as s where s.pinned order by s.active_hour desc limit 1000)
            union all
            (select s.updated_at from chatledger.sessions as s where not s.pinned order by s.active_hour desc limit 1000)
        ) as s)
    union all select 'writers waiting for a session', (
        select count(*)::text from pg_stat_activity as a
        where a.datname = current_database() and a.wait_event_type = 'Lock' and a.query ~ 'chatledger\.')
    union all select 'longest transaction', (
        select coalesce(max(clock_timestamp() - a.xact_start), interval '0')::text from pg_stat_activity as a
        where a.datname = current_database() and a.pid <> pg_backend_pid())
    union all select 'HOT updates of sessions', (
        select round(100.0 * t.n_tup_hot_upd / nullif(t.n_tup_upd, 0)) || ' %'
        from pg_stat_user_tables as t where t.relid = 'chatledger.sessions'::regclass)
$function$;

revoke all on function chatledger.status() from public;
comment on function chatledger.status() is 'Health at a glance.';
grant execute on function chatledger.status() to chatledger_reader, chatledger_writer;


-- store_amended(p_message, p_body) -> bigint, the session's new version
-- Puts a new body into a stored message and advances the session. The hash of the body as it was appended stays, so that a
-- late retry of that append is still recognised. The caller holds the session's lock. Raises CL007. Internal.
create or replace function chatledger.store_amended(p_message chatledger.messages, p_body jsonb)
returns bigint
language plpgsql
as $function$
declare
    v_problem text[] := chatledger.message_problem(p_body);
    v_version bigint;
begin
    if v_problem is not null then
        raise exception using
            errcode = 'CL007',
            message = format('message "%s": %s %s', p_message.message_id, v_problem[1], v_problem[2]),
            detail = jsonb_build_object('message_id', p_message.message_id, 'field', v_problem[1],
                'problem', v_problem[2])::text,
            hint = 'Nothing was changed. Correct the change and call again.';
    end if;

    update chatledger.sessions as s
    set version = s.version + 1, updated_at = greatest(clock_timestamp(), s.updated_at)
    where s.id = p_message.session_id
    returning s.version into v_version;

    update chatledger.messages as m
    set (role, content, content_parts, name, tool_call_id, refusal, tool_calls, function_call, metadata, duration_ms, extra)
            = (select field.role, field.content, field.content_parts, field.name, field.tool_call_id, field.refusal,
                field.tool_calls, field.function_call, field.metadata, field.duration_ms, field.extra
               from chatledger.message_columns(p_body) as field),
        amended_version = v_version,
        original_hash = coalesce(m.original_hash, chatledger.message_hash(chatledger.message_body(m)))
    where m.session_id = p_message.session_id and m.sequence = p_message.sequence;
    return v_version;
end
$function$;

revoke all on function chatledger.store_amended(chatledger.messages, jsonb) from public;
comment on function chatledger.store_amended(chatledger.messages, jsonb) is 'Internal: writes an amended message.';


-- stored_message(p_session_id, p_message_id) -> chatledger.messages
-- A message of the session that was not removed. Raises CL009. Internal.
create or replace function chatledger.stored_message(p_session_id text, p_message_id text)
returns chatledger.messages
language plpgsql
stable
as $function$
declare
    v_message chatledger.messages;
begin
    select m.* into v_message
    from chatledger.messages as m
    where m.session_id = p_session_id and m.message_id = p_message_id and not m.removed;
    if not found then
        raise exception using
            errcode = 'CL009',
            message = format('message "%s" not found in session "%s"', p_message_id, p_session_id),
            detail = jsonb_build_object('session_id', p_session_id, 'message_id', p_message_id)::text,
            hint = 'It was never appended, or truncate_session removed it.';
    end if;
    return v_message;
end
$function$;

revoke all on function chatledger.stored_message(text, text) from public;
comment on function chatledger.stored_message(text, text) is 'Internal: a stored message, or CL009.';


-- truncate_session(p_session_id, p_from_sequence, p_user_id, p_expected_sequence, p_fence)
--     -> (removed, next_sequence, version), one row
--
-- Removes the messages from a sequence on, for "edit and regenerate". Their content is erased; their numbers and ids stay
-- taken: the next message goes on at next_sequence, and the retry of a removed message does not bring it back.
--
-- p_expected_sequence  the session's next_sequence that the caller saw: refuses when somebody appended since
--
-- Idempotent with p_expected_sequence; without it, a retry also removes what was appended in between.
-- Lock:   the session's row.
-- Raises: CL001 session not found, CL002 somebody appended since, CL005 stale fence, CL008 invalid argument; 40001.
-- Example: select * from chatledger.truncate_session('s1', 4);
create or replace function chatledger.truncate_session(
    p_session_id text,
    p_from_sequence integer,
    p_user_id text default null,
    p_expected_sequence integer default null,
    p_fence bigint default null
)
returns table (removed integer, next_sequence integer, version bigint)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_session chatledger.sessions;
    v_removed integer;
begin
    if p_from_sequence is null or p_from_sequence < 0 then
        perform chatledger.raise_invalid_argument('from_sequence', 'must be 0 or more');
    end if;

    v_session := chatledger.lock_session(p_session_id, p_user_id, p_fence);

    if p_expected_sequence <> v_session.next_sequence then
        perform chatledger.raise_sequence_conflict(v_session, p_expected_sequence);
    end if;

    update chatledger.messages as m
    set removed = true, amended_version = v_session.version + 1,
        original_hash = coalesce(m.original_hash, chatledger.message_hash(chatledger.message_body(m))),
        content = null, content_parts = null, name = null, tool_call_id = null, refusal = null, tool_calls = null,
        function_call = null, metadata = null, duration_ms = null, extra = null
    where m.session_id = p_session_id and m.sequence >= p_from_sequence and not m.removed;
    get diagnostics v_removed = row_count;

    if v_removed > 0 then
        update chatledger.sessions as s
        set removed_count = s.removed_count + v_removed, version = s.version + 1,
            updated_at = greatest(clock_timestamp(), s.updated_at)
        where s.id = p_session_id
        returning s.* into v_session;
    end if;
    return query select v_removed, v_session.next_sequence, v_session.version;
end
$function$;

revoke all on function chatledger.truncate_session(text, integer, text, integer, bigint) from public;
grant execute on function chatledger.truncate_session(text, integer, text, integer, bigint) to chatledger_writer;
comment on function chatledger.truncate_session(text, integer, text, integer, bigint) is
    'Removes the messages from a sequence on.';


-- update_session(p_session_id, p_user_id, p_title, p_only_if_empty, p_metadata, p_pinned, p_status)
--     -> chatledger.session_header, as it is afterwards
--
-- Changes what is given; a null argument leaves its field alone; an empty title takes the title away.
--
-- p_only_if_empty  set the title only while the session has none
-- p_metadata       merged key by key; a key given as null is removed
--
-- Idempotent: setting what is already so changes nothing, the version neither.
-- Lock:   the session's row.
-- Raises: CL001 session not found, CL008 invalid argument; 40001.
-- Example: select * from chatledger.update_session('s1', p_title => 'Trip to Oslo', p_only_if_empty => true);
create or replace function chatledger.update_session(
    p_session_id text,
    p_user_id text default null,
    p_title text default null,
    p_only_if_empty boolean default false,
    p_metadata jsonb default null,
    p_pinned boolean default null,
    p_status text default null
)
returns chatledger.session_header
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_changed chatledger.sessions;
begin
    if jsonb_typeof(p_metadata) <> 'object' then
        perform chatledger.raise_invalid_argument('metadata', 'must be a JSON object');
    end if;

    v_session := chatledger.lock_session(p_session_id, p_user_id);

    v_changed := v_session;
    if not coalesce(p_only_if_empty, false) or coalesce(v_session.title, '') = '' then
        v_changed.title := nullif(coalesce(p_title, v_session.title), '');
    end if;
    if p_metadata is not null then
        v_changed.metadata := chatledger.merge_keys(v_session.metadata, p_metadata);
    end if;
    v_changed.pinned := coalesce(p_pinned, v_session.pinned);
    v_changed.status := coalesce(p_status, v_session.status);

    if v_changed is distinct from v_session then
        update chatledger.sessions as s
        set title = v_changed.title, metadata = v_changed.metadata, pinned = v_changed.pinned, status = v_changed.status,
            version = s.version + 1, updated_at = greatest(clock_timestamp(), s.updated_at)
        where s.id = p_session_id
        returning s.* into v_changed;
    end if;
    return chatledger.header_of(v_changed);
end
$function$;

revoke all on function chatledger.update_session(text, text, text, boolean, jsonb, boolean, text) from public;
grant execute on function chatledger.update_session(text, text, text, boolean, jsonb, boolean, text) to chatledger_writer;
comment on function chatledger.update_session(text, text, text, boolean, jsonb, boolean, text) is
    'Changes a session''s title, metadata, pin and status.';


-- verify_session(p_session_id) -> (session_id, guarantee, sequence, problem), a row a problem; none when all is well
--
-- Checks stored data against the guarantees: G1 gapless order, G2 times that never decrease, G3 what recognises a retry.
-- p_session_id null: every session (reads all messages).
--
-- Raises: CL001 session not found.
-- Example: select * from chatledger.verify_session('s1');
create or replace function chatledger.verify_session(p_session_id text default null)
returns table (session_id text, guarantee text, sequence integer, problem text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
begin
    if p_session_id is not null
        and not exists (select from chatledger.sessions as s where s.id = p_session_id and s.deleted_at is null)
    then
        perform chatledger.raise_session_not_found(p_session_id);
    end if;

    return query
        select s.id, 'G1', null::integer,
            format('%s messages, first %s, last %s; next_sequence is %s and removed_count %s',
                stored.count, stored.first, stored.last, s.next_sequence, s.removed_count)
        from chatledger.sessions as s
        cross join lateral (
            select count(*) as count, min(m.sequence) as first, max(m.sequence) as last,
                count(*) filter (where m.removed) as removed
            from chatledger.messages as m
            where m.session_id = s.id
        ) as stored
        where (p_session_id is null or s.id = p_session_id)
            and (stored.count <> s.next_sequence or stored.first <> 0 or stored.last <> s.next_sequence - 1
                or stored.removed <> s.removed_count);

    return query
        select checked.session_id, checked.guarantee, checked.sequence, checked.problem
        from (
            select m.session_id, m.sequence, problem.guarantee, problem.problem
            from (
                select stored as message, stored.session_id, stored.sequence, stored.created_at,
                    lag(stored.created_at) over (partition by stored.session_id order by stored.sequence) as previous
                from chatledger.messages as stored
                where p_session_id is null or stored.session_id = p_session_id
            ) as m
            join chatledger.sessions as s on s.id = m.session_id
            cross join lateral (values
                ('G2', case when m.created_at < m.previous then 'was stored before the message in front of it' end),
                ('G2', case when m.created_at > s.updated_at then 'was stored after the session''s updated_at' end),
                ('G3', case when (m.message).amended_version > s.version then 'was amended after the session''s version' end),
                ('G3', case when ((m.message).amended_version is null) <> ((m.message).original_hash is null)
                    then 'is amended without its original''s hash, or the other way round' end),
                ('G10', (chatledger.message_problem(chatledger.message_body(m.message)))[2])
            ) as problem (guarantee, problem)
            where problem.problem is not null and not ((m.message).removed and problem.guarantee = 'G10')
        ) as checked
        order by checked.session_id, checked.sequence;
end
$function$;

revoke all on function chatledger.verify_session(text) from public;
grant execute on function chatledger.verify_session(text) to chatledger_reader, chatledger_writer;
comment on function chatledger.verify_session(text) is 'Checks stored sessions; a row a problem.';


-- version() -> text
-- The release of chatledger whose functions this database has.
create or replace function chatledger.version()
returns text
language sql
immutable
as $function$
    select '0.1.0'
$function$;

revoke all on function chatledger.version() from public;
grant execute on function chatledger.version() to chatledger_reader, chatledger_writer;
comment on function chatledger.version() is 'The release of chatledger whose functions this database has.';


-- Who holds a session right now: the transaction that has its row locked, and how many wait for it.
-- Seeing other users' queries takes the right pg_read_all_stats. A row that several transactions share (foreign keys of
-- your own tables that point to it) does not name its holder; the waiting are seen in pg_stat_activity all the same.
-- Example: select * from chatledger.session_holders where session_id = 's1';
create or replace view chatledger.session_holders as
select
    s.id as session_id, a.pid, a.usename as user_name, a.application_name, a.client_addr, a.state,
    clock_timestamp() - a.xact_start as held_for,
    -- The first in the queue waits for the transaction, the others for the row.
    (select count(*)
        from pg_locks as w
        where not w.granted
            and (w.transactionid = s.xmax
                or w.locktype = 'tuple' and w.relation = s.tableoid
                    and format('(%s,%s)', w.page, w.tuple)::tid = s.ctid)) as waiting,
    a.query
from chatledger.sessions as s
-- A locked or updated row names the transaction in xmax.
join pg_locks as l on l.locktype = 'transactionid' and l.granted and l.transactionid = s.xmax
join pg_stat_activity as a on a.pid = l.pid;

grant select on chatledger.session_holders to chatledger_reader, chatledger_writer;
comment on view chatledger.session_holders is 'Who holds a session''s lock, since when, and how many wait.';


-- Every live session, for operators: who, what, how much, when.
-- Example: select * from chatledger.session_overview where user_id = 'u1' order by updated_at desc;
create or replace view chatledger.session_overview as
select
    s.id as session_id, s.user_id, s.title, s.status, s.pinned, s.next_sequence - s.removed_count as message_count,
    s.total_tokens, s.version, s.created_at, s.updated_at
from chatledger.sessions as s
where s.deleted_at is null;

grant select on chatledger.session_overview to chatledger_reader, chatledger_writer;
comment on view chatledger.session_overview is 'Every live session, for operators.';


-- Conversations as one reads them: a line a message, long texts cut.
-- Example: select * from chatledger.transcript where session_id = 's1' order by sequence;
create or replace view chatledger.transcript as
select
    m.session_id, m.sequence, m.role,
    left(regexp_replace(coalesce(m.content, m.refusal, m.content_parts::text, ''), '\s+', ' ', 'g'), 100) as text,
    (select string_agg(coalesce(call -> 'function' ->> 'name', call -> 'custom' ->> 'name'), ', ')
        from jsonb_array_elements(m.tool_calls) as call) as calls,
    m.created_at, m.amended_version is not null as amended
from chatledger.messages as m
where not m.removed;

grant select on chatledger.transcript to chatledger_reader, chatledger_writer;
comment on view chatledger.transcript is 'Conversations as one reads them: a line a message.';


commit;
