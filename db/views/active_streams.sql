-- The streams that hold their session's lease right now: who streams, since when, until when unless it is renewed.
-- Example: select * from chatledger.active_streams where user_id = 'u1';
create or replace view chatledger.active_streams as
select
    s.id as session_id, s.user_id, s.stream_owner as owner, s.stream_fence as fence, s.stream_began_at as began_at,
    s.stream_expires_at as expires_at
from chatledger.sessions as s
where s.stream_id is not null and s.stream_expires_at > clock_timestamp();

grant select on chatledger.active_streams to chatledger_reader, chatledger_writer;
comment on view chatledger.active_streams is 'Who streams which session, since when and until when.';
