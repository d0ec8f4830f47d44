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
