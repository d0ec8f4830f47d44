-- verify_session(p_session_id) -> (session_id, guarantee, sequence, problem), a row a problem; none when all is well
--
-- Checks stored data against the guarantees: G1 gapless order, G2 times that never decrease, G3 what recognises a retry, G10
-- that only valid messages are stored.
--
-- p_session_id  the session; null: every session, one after the other (reads all messages)
--
-- Locks:      none.
-- Writes:     nothing.
-- Raises:     CL001 session not found.
-- Example:    select * from chatledger.verify_session('s1');
create or replace function chatledger.verify_session(p_session_id text default null)
returns table (session_id text, guarantee text, sequence integer, problem text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $function$
#variable_conflict use_column
declare
    v_id text;
begin
    if p_session_id is not null then
        if (chatledger_internal.session_now(p_session_id, null)).id is null then
            perform chatledger_internal.raise_session_not_found(p_session_id);
        end if;
        return query select p_session_id, found.* from chatledger_internal.problems_of(p_session_id) as found;
        return;
    end if;
    for v_id in select s.id from chatledger.sessions as s order by s.id loop
        return query select v_id, found.* from chatledger_internal.problems_of(v_id) as found;
    end loop;
end
$function$;

revoke all on function chatledger.verify_session(text) from public;
grant execute on function chatledger.verify_session(text) to chatledger_reader, chatledger_writer;
comment on function chatledger.verify_session(text) is 'Checks stored sessions; a row a problem.';
