-- Installs or upgrades chatledger with psql, to the same schema as `chatledger migrate`:
--     psql -v ON_ERROR_STOP=1 -f db/install.sql
-- Written by `make install-sql`; do not edit.
\set ON_ERROR_STOP on
begin;
do $lock$
begin
    set local lock_timeout = '1min';
    begin
        create schema if not exists chatledger;
        create table if not exists chatledger.migrations (
            number     integer     primary key,
            name       text        not null,
            checksum   text        not null,
            applied_at timestamptz not null default now()
        );
    exception when unique_violation or duplicate_schema or duplicate_table then
        null;  -- Another migrator has just created them.
    end;
    lock table chatledger.migrations in share row exclusive mode;
    set local lock_timeout to default;
exception when lock_not_available then
    raise exception using
        errcode = 'CL012',
        message = 'another transaction has kept the migrations locked for a minute',
        hint = 'Wait until the other migrator is done, or end its transaction, and migrate again.';
end
$lock$;
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
            (1, 'a6fa4dbd7afa594dc3c272ca5411c898d812835460d6a1ea3f652b0db549f15e')
    ) as known (number, checksum) using (number)
    where applied.checksum <> known.checksum;
    if found then
        raise exception using errcode = 'CL012',
            message = format('migration %s was applied to this database with other contents', v_changed),
            hint = 'Migrations are never edited once applied. Install an unchanged chatledger.';
    end if;
end
$guard$;
select not exists (select from chatledger.migrations where number = 1) as pending \gset
\if :pending
\ir migrations/0001_ledger.sql
insert into chatledger.migrations (number, name, checksum)
values (1, '0001_ledger', 'a6fa4dbd7afa594dc3c272ca5411c898d812835460d6a1ea3f652b0db549f15e');
\endif
\ir access.sql
\ir functions/internal/advance_session.sql
\ir functions/internal/apply_amendment.sql
\ir functions/internal/apply_changes.sql
\ir functions/internal/check_changes.sql
\ir functions/internal/check_header_size.sql
\ir functions/internal/check_messages.sql
\ir functions/internal/check_snapshot.sql
\ir functions/internal/check_ttl.sql
\ir functions/internal/extra_with_nulls.sql
\ir functions/internal/header_now.sql
\ir functions/internal/header_of.sql
\ir functions/internal/insert_session.sql
\ir functions/internal/is_storable.sql
\ir functions/internal/is_visible.sql
\ir functions/internal/json_problem.sql
\ir functions/internal/lock_session.sql
\ir functions/internal/lock_user.sql
\ir functions/internal/merge_keys.sql
\ir functions/internal/message_columns.sql
\ir functions/internal/message_hash.sql
\ir functions/internal/message_problem.sql
\ir functions/internal/new_messages.sql
\ir functions/internal/notify_followers.sql
\ir functions/internal/page_start.sql
\ir functions/internal/patched_body.sql
\ir functions/internal/problems_of.sql
\ir functions/internal/raise_amended_since.sql
\ir functions/internal/raise_invalid_argument.sql
\ir functions/internal/raise_sequence_conflict.sql
\ir functions/internal/raise_session_not_found.sql
\ir functions/internal/raise_stale_fence.sql
\ir functions/internal/same_value.sql
\ir functions/internal/session_now.sql
\ir functions/internal/store_amended.sql
\ir functions/internal/store_header.sql
\ir functions/internal/stored_message.sql
\ir functions/internal/tail_of.sql
\ir functions/internal/with_ids.sql
\ir functions/add_tool_call.sql
\ir functions/amend_message.sql
\ir functions/append_messages.sql
\ir functions/begin_stream.sql
\ir functions/create_session.sql
\ir functions/delete_session.sql
\ir functions/end_stream.sql
\ir functions/follow_session.sql
\ir functions/fork_session.sql
\ir functions/get_messages.sql
\ir functions/list_sessions.sql
\ir functions/message_body.sql
\ir functions/purge_sessions.sql
\ir functions/read_session.sql
\ir functions/record_usage.sql
\ir functions/renew_stream.sql
\ir functions/save_session.sql
\ir functions/status.sql
\ir functions/truncate_session.sql
\ir functions/update_session.sql
\ir functions/verify_session.sql
\ir functions/version.sql
\ir views/active_streams.sql
\ir views/session_holders.sql
\ir views/session_overview.sql
\ir views/transcript.sql
commit;
