-- Installs or upgrades chatledger with psql, to the same schema as `chatledger migrate`:
--     psql -v ON_ERROR_STOP=1 -f db/install.sql
-- Written by `make install-sql`; do not edit.
\set ON_ERROR_STOP on
begin;
select pg_advisory_xact_lock(hashtext('chatledger.migrations')) \g /dev/null
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
        or exists (select from chatledger.migrations where number > 3)
    then
        raise exception using errcode = 'CL012',
            message = format('the database has release %s, newer than this chatledger (0.1.0)', v_release),
            hint = format('Install chatledger %s or newer.', v_release);
    end if;
    select applied.name into v_changed
    from chatledger.migrations as applied
    join (values
            (1, 'd280c72f8d45fea8516795e6ae4061b4080c3b900282d0ea3bacc0b207132193'),
            (2, 'a97db302ae0129c4428b7547f607f8250732569a740d95abd9eb523470916083'),
            (3, '681e2bf80b9364ea6203d422bd5407c0682d861e319782944e92408d3cbb152d')
    ) as known (number, checksum) using (number)
    where applied.checksum <> known.checksum;
    if found then
        raise exception using errcode = 'CL012',
            message = format('migration %s was applied to this database with other contents', v_changed),
            hint = 'Migrations are never edited once applied. Install an unchanged chatledger.';
    end if;
end
$guard$;
select to_regclass('chatledger.migrations') is null as pending \gset
\if :pending
\ir migrations/0001_ledger.sql
insert into chatledger.migrations (number, name, checksum)
values (1, '0001_ledger', 'd280c72f8d45fea8516795e6ae4061b4080c3b900282d0ea3bacc0b207132193');
\endif
select not exists (select from chatledger.migrations where number = 2) as pending \gset
\if :pending
\ir migrations/0002_streams.sql
insert into chatledger.migrations (number, name, checksum)
values (2, '0002_streams', 'a97db302ae0129c4428b7547f607f8250732569a740d95abd9eb523470916083');
\endif
select not exists (select from chatledger.migrations where number = 3) as pending \gset
\if :pending
\ir migrations/0003_following.sql
insert into chatledger.migrations (number, name, checksum)
values (3, '0003_following', '681e2bf80b9364ea6203d422bd5407c0682d861e319782944e92408d3cbb152d');
\endif
\ir functions/add_tool_call.sql
\ir functions/amend_message.sql
\ir functions/append_messages.sql
\ir functions/apply_amendment.sql
\ir functions/apply_changes.sql
\ir functions/begin_stream.sql
\ir functions/check_changes.sql
\ir functions/check_messages.sql
\ir functions/check_ttl.sql
\ir functions/create_session.sql
\ir functions/delete_session.sql
\ir functions/end_stream.sql
\ir functions/extra_with_nulls.sql
\ir functions/follow_session.sql
\ir functions/fork_session.sql
\ir functions/get_messages.sql
\ir functions/header_of.sql
\ir functions/is_storable.sql
\ir functions/is_visible.sql
\ir functions/json_problem.sql
\ir functions/list_sessions.sql
\ir functions/lock_session.sql
\ir functions/merge_keys.sql
\ir functions/message_body.sql
\ir functions/message_columns.sql
\ir functions/message_hash.sql
\ir functions/message_problem.sql
\ir functions/notify_followers.sql
\ir functions/page_start.sql
\ir functions/patched_body.sql
\ir functions/purge_sessions.sql
\ir functions/raise_amended_since.sql
\ir functions/raise_invalid_argument.sql
\ir functions/raise_sequence_conflict.sql
\ir functions/raise_session_not_found.sql
\ir functions/read_session.sql
\ir functions/record_usage.sql
\ir functions/renew_stream.sql
\ir functions/same_value.sql
\ir functions/save_session.sql
\ir functions/session_channel.sql
\ir functions/status.sql
\ir functions/store_amended.sql
\ir functions/store_header.sql
\ir functions/stored_message.sql
\ir functions/truncate_session.sql
\ir functions/update_session.sql
\ir functions/verify_session.sql
\ir functions/version.sql
\ir views/active_streams.sql
\ir views/session_holders.sql
\ir views/session_overview.sql
\ir views/transcript.sql
commit;
