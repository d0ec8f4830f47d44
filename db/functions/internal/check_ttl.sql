-- check_ttl(p_ttl) -> void
-- Refuses a time that no lease can last (CL008).
create or replace function chatledger_internal.check_ttl(p_ttl interval)
returns void
language plpgsql
immutable
as $function$
begin
    if p_ttl is null or p_ttl <= interval '0' or p_ttl > interval '1 day' then
        perform chatledger_internal.raise_invalid_argument('ttl', 'must be an interval above 0, up to 1 day');
    end if;
end
$function$;

comment on function chatledger_internal.check_ttl(interval) is 'Refuses a time that no lease can last.';
