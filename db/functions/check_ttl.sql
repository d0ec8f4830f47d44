-- check_ttl(p_ttl) -> void
-- Refuses a time that no lease can last (CL008). Internal.
create or replace function chatledger.check_ttl(p_ttl interval)
returns void
language plpgsql
immutable
as $function$
begin
    if p_ttl is null or p_ttl <= interval '0' or p_ttl > interval '1 day' then
        perform chatledger.raise_invalid_argument('ttl', 'must be an interval above 0, up to 1 day');
    end if;
end
$function$;

revoke all on function chatledger.check_ttl(interval) from public;
comment on function chatledger.check_ttl(interval) is 'Internal: refuses a time that no lease can last.';
