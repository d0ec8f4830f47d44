-- The ledger's schema: tables, types, roles. Never edited once landed: a change is the next number.
-- Tables are an implementation detail; the functions (db/functions) and views (db/views) are the contract.

-- The schema and the table of migrations are there already: the migrator makes them.
comment on schema chatledger is 'A ledger of conversations. Write only through its functions.';

create schema chatledger_internal;
comment on schema chatledger_internal is 'What the functions of chatledger call. For nobody else: it may change in any release.';

comment on table chatledger.migrations is 'Migrations applied to this database, with the SHA-256 of each file.';

-- Every key starts with session_id, so that the tables can be distributed by it.
-- Ids compare as bytes (collate "C"): cheaper, and independent of the database's locale.

create table chatledger.sessions (
    id                    text collate "C" primary key,
    user_id               text collate "C",
    title                 text,
    metadata              jsonb       not null default '{}',
    pinned                boolean     not null default false,
    status                text        not null default 'active',
    prompt_tokens         bigint      not null default 0,
    completion_tokens     bigint      not null default 0,
    total_tokens          bigint      not null default 0,
    cache_read_tokens     bigint      not null default 0,
    cache_creation_tokens bigint      not null default 0,
    reasoning_tokens      bigint      not null default 0,
    next_sequence         integer     not null default 0,
    removed_count         integer     not null default 0,
    version               bigint      not null default 1,
    forked_from           text collate "C",
    forked_at             integer,
    created_at            timestamptz not null,
    updated_at            timestamptz not null,
    deleted_at            timestamptz,
    -- What the lists of sessions are ordered by first; within the hour they look at the messages for the time.
    active_hour           timestamptz generated always as
        (date_bin('1 hour', updated_at, timestamptz '2000-01-01 00:00:00+00')) stored,
    constraint sessions_id_length check (char_length(id) between 1 and 255),
    constraint sessions_metadata_object check (jsonb_typeof(metadata) = 'object')
) with (fillfactor = 70);

create index sessions_by_user on chatledger.sessions (user_id, pinned, active_hour) where deleted_at is null;
create index sessions_by_activity on chatledger.sessions (pinned, active_hour);

comment on table chatledger.sessions is 'A row a session. Locked by every write to the session; an append changes it at most once an hour.';
comment on column chatledger.sessions.version is 'Counts every committed change of the session. Since the last change of this row, messages and growth count on.';
comment on column chatledger.sessions.next_sequence is 'Sequence of the next message, when this row was last changed: the messages that came since count on.';
comment on column chatledger.sessions.updated_at is 'When the session was changed, when this row was last changed: newer messages and growth have the time.';
comment on column chatledger.sessions.removed_count is 'How many messages were removed.';
comment on column chatledger.sessions.deleted_at is 'When set, the session is gone and only its id is kept, so that a late write cannot bring it back.';

create table chatledger.messages (
    session_id      text collate "C" not null references chatledger.sessions (id) on delete cascade,
    sequence        integer          not null,
    message_id      text collate "C" not null,
    role            text,
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
    version         bigint           not null,
    amended_version bigint,
    original_hash   bytea,
    created_at      timestamptz      not null,
    primary key (session_id, message_id)
);

-- Removed messages keep their row, so that a retry finds their id; they are out of the way of reads.
create unique index messages_in_order on chatledger.messages (session_id, sequence) where not removed;
-- Null until a message is amended, so that appends never touch this index.
create index messages_amended on chatledger.messages (session_id, amended_version) where amended_version is not null;

comment on table chatledger.messages is 'A row a message, in a column each the fields of an OpenAI chat message.';
comment on column chatledger.messages.content is 'Content given as text.';
comment on column chatledger.messages.content_parts is 'Content given as a list of parts.';
comment on column chatledger.messages.extra is 'Every key without a column of its own, and known keys that were given as null: what comes in goes out unchanged.';
comment on column chatledger.messages.removed is 'Removed by truncate_session: the row keeps its sequence and id, its content is erased.';
comment on column chatledger.messages.version is 'The session''s version with this message.';
comment on column chatledger.messages.amended_version is 'The session''s version at which this message was last amended; null: never.';
comment on column chatledger.messages.original_hash is 'Hash of the message as it was appended, once it was amended: a retry of the append is compared with it.';

create table chatledger.streams (
    session_id   text collate "C" primary key references chatledger.sessions (id) on delete cascade,
    user_id      text collate "C",
    stream_id    text        not null,
    holder       text        not null,
    fence        bigint      not null,
    began_at     timestamptz not null,
    expires_at   timestamptz not null,
    ended_at     timestamptz
) with (fillfactor = 70);

-- Who streams right now, and how many of them a user has. Renewals do not change what is in it, so they stay HOT.
create index streams_of_users on chatledger.streams (user_id) where ended_at is null;

comment on table chatledger.streams is 'A row a session that was streamed: the lease of its stream, the last one or the one that is held now.';
comment on column chatledger.streams.fence is 'Number of the lease; every write of its holder names it.';
comment on column chatledger.streams.ended_at is 'When the lease was given back; null: it is held, until expires_at.';

-- Fences of all sessions: one that was purged and created anew under the same id never gives out an old one again.
create sequence chatledger.fences;
comment on sequence chatledger.fences is 'What makes fences differ; their last digits are random.';

create table chatledger.user_locks (
    user_id text collate "C" primary key
);
comment on table chatledger.user_locks is 'Rows to lock by who counts a user''s streams.';

create table chatledger.watches (
    session_id    text collate "C" primary key references chatledger.sessions (id) on delete cascade,
    channel       text        not null,
    watched_until timestamptz
) with (fillfactor = 70);

comment on table chatledger.watches is 'A row a session: whether its changes are notified. Written by followers, only read by writers.';
comment on column chatledger.watches.channel is 'Where changes are notified: a name that nobody can guess.';
comment on column chatledger.watches.watched_until is 'Until when somebody follows this session.';

create table chatledger.usage_records (
    session_id            text collate "C" not null references chatledger.sessions (id) on delete cascade,
    usage_id              text collate "C" not null,
    prompt_tokens         bigint           not null,
    completion_tokens     bigint           not null,
    total_tokens          bigint           not null,
    cache_read_tokens     bigint           not null,
    cache_creation_tokens bigint           not null,
    reasoning_tokens      bigint           not null,
    model                 text,
    details               jsonb            not null,
    version               bigint           not null,
    created_at            timestamptz      not null,
    primary key (session_id, usage_id)
);

create index usage_records_by_version on chatledger.usage_records (session_id, version);

comment on table chatledger.usage_records is 'Token usage, a row a recorded use; the id makes recording it exactly once.';
comment on column chatledger.usage_records.details is 'What else the provider told, as it came.';
comment on column chatledger.usage_records.version is 'The session''s version with this record: versions give the records their order.';

create table chatledger.added_tool_calls (
    session_id   text collate "C" not null references chatledger.sessions (id) on delete cascade,
    tool_call_id text collate "C" not null,
    message_id   text collate "C" not null,
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
    cache_read_tokens     bigint,
    cache_creation_tokens bigint,
    reasoning_tokens      bigint,
    message_count     integer,
    next_sequence     integer,
    version           bigint,
    forked_from       text,
    forked_at         integer,
    created_at        timestamptz,
    updated_at        timestamptz
);
comment on type chatledger.session_header is 'What the functions return of a session, without its messages.';
