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
