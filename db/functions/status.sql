-- status() -> (item, value), a row an item
--
-- Health at a glance. Counts of sessions and messages are the planner's estimates, so that it is cheap on any size. Sizes are
-- bytes, times are seconds.
--
-- Locks:      none.
-- Writes:     nothing.
-- Raises:     nothing.
-- Example:    select * from chatledger.status();
create or replace function chatledger.status()
returns table (item text, value text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    select 'release', chatledger.version()
    union all select 'schema', (select max(m.number)::text from chatledger.migrations as m)
    union all select 'server', current_setting('server_version')
    union all select 'sessions_estimate', (
        select greatest(c.reltuples, 0)::bigint::text from pg_class as c where c.oid = 'chatledger.sessions'::regclass)
    union all select 'messages_estimate', (
        select greatest(c.reltuples, 0)::bigint::text from pg_class as c where c.oid = 'chatledger.messages'::regclass)
    union all select 'size_bytes', (
        select sum(pg_total_relation_size(c.oid))::text
        from pg_class as c where c.relnamespace = 'chatledger'::regnamespace and c.relkind = 'r')
    union all select 'live_streams', (select count(*)::text from chatledger.active_streams)
    union all select 'writers_waiting', (
        select count(*)::text from pg_stat_activity as a
        where a.datname = current_database() and a.wait_event_type = 'Lock' and a.query ~ 'chatledger\.')
    union all select 'longest_transaction_seconds', (
        select round(coalesce(extract(epoch from max(clock_timestamp() - a.xact_start)), 0), 3)::text
        from pg_stat_activity as a
        where a.datname = current_database() and a.pid <> pg_backend_pid())
$function$;

revoke all on function chatledger.status() from public;
grant execute on function chatledger.status() to chatledger_reader, chatledger_writer;
comment on function chatledger.status() is 'Health at a glance.';
