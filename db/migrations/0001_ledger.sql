-- The ledger's schema: tables, types, roles. Never edited once landed: a change is the next number.
-- Tables are an implementation detail; the functions (db/functions) and views (db/views) are the contract.

create schema chatledger;
comment on schema chatledger is 'A ledger of conversations. Write only through its functions.';

create schema chatledger_internal;
comment on schema chatledger_internal is 'What the functions of chatledger call. For nobody else: it may change in any release.';

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
    cache_read_tokens     bigint  not null default 0,
    cache_creation_tokens bigint  not null default 0,
    reasoning_tokens      bigint  not null default 0,
    next_sequence     integer     not null default 0,
    removed_count     integer     not null default 0,
    version           bigint      not null default 1,
    forked_from       text collate "C",
    forked_at         integer,
    stream_owner      text,
    stream_fence      bigint      not null default 0,
    stream_expires_at timestamptz,
    stream_id         text,
    stream_began_at   timestamptz,
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
-- Who streams right now, and how many of them a user has.
create index sessions_streaming on chatledger.sessions (user_id) where stream_id is not null;

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
    cache_read_tokens     bigint       not null,
    cache_creation_tokens bigint       not null,
    reasoning_tokens      bigint       not null,
    model             text,
    details           jsonb            not null,
    version           bigint           not null,
    created_at        timestamptz      not null,
    primary key (session_id, usage_id)
);
create index usage_records_by_version on chatledger.usage_records (session_id, version);
comment on column chatledger.usage_records.details is 'What else the provider told, as it came.';
comment on column chatledger.usage_records.version is 'The session''s version with this record: versions give the records their order.';
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
