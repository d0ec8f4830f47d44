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
