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
