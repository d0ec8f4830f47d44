-- The streams that hold their session's lease right now: who streams, since when, until when unless it is renewed.
-- Example: select * from chatledger.active_streams where user_id = 'u1';
create or replace view chatledger.active_streams as
select st.session_id, st.user_id, st.holder, st.fence, st.began_at, st.expires_at
from chatledger.streams as st
where st.ended_at is null and st.expires_at > clock_timestamp();

grant select on chatledger.active_streams to chatledger_reader, chatledger_writer;
comment on view chatledger.active_streams is 'Who streams which session, since when and until when.';
