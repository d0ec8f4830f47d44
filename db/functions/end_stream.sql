-- end_stream(p_session_id, p_fence) -> boolean, whether this fence held the lease
--
-- Gives the lease of a stream back, so that the next one can begin at once. Leaves version and updated_at alone, as
-- begin_stream does.
--
-- Idempotent: the second time, and for a lease that ran out or was taken over, it changes nothing and returns false.
-- Lock:   the session's row.
-- Raises: 40001. A session that is missing is not an error: false.
-- Example: select chatledger.end_stream('s1', 1);
create or replace function chatledger.end_stream(p_session_id text, p_fence bigint)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    update chatledger.sessions as s
    set stream_id = null, stream_owner = null, stream_began_at = null, stream_expires_at = null
    where s.id = p_session_id and s.stream_fence = p_fence and s.stream_expires_at > clock_timestamp();
    return found;
end
$function$;

revoke all on function chatledger.end_stream(text, bigint) from public;
grant execute on function chatledger.end_stream(text, bigint) to chatledger_writer;
comment on function chatledger.end_stream(text, bigint) is 'Gives the lease of a session''s stream back.';
