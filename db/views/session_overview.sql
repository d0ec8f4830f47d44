-- Every live session, for operators: who, what, how much, when.
-- Example: select * from chatledger.session_overview where user_id = 'u1' order by updated_at desc;
create or replace view chatledger.session_overview as
select
    s.id as session_id, s.user_id, s.title, s.status, s.pinned,
    greatest(s.next_sequence, last.sequence + 1) - s.removed_count as message_count, s.total_tokens,
    greatest(s.version, last.version) as version, s.created_at, greatest(s.updated_at, last.created_at) as updated_at
from chatledger.sessions as s
left join lateral (
    select m.sequence, m.version, m.created_at
    from chatledger.messages as m
    where m.session_id = s.id and not m.removed
    order by m.sequence desc
    limit 1
) as last on true
where s.deleted_at is null;

grant select on chatledger.session_overview to chatledger_reader, chatledger_writer;
comment on view chatledger.session_overview is 'Every live session, for operators.';
