-- check_header_size(p_title, p_metadata, p_status) -> void
-- Refuses a header that every list and every read of the session would carry along.
-- Raises: CL008.
create or replace function chatledger_internal.check_header_size(p_title text, p_metadata jsonb, p_status text)
returns void
language plpgsql
immutable
as $function$
begin
    if char_length(p_title) > 1000 then
        perform chatledger_internal.raise_invalid_argument('title', 'must have up to 1000 characters');
    end if;
    if char_length(p_status) > 255 then
        perform chatledger_internal.raise_invalid_argument('status', 'must have up to 255 characters');
    end if;
    if octet_length(p_metadata::text) > 1000000 then
        perform chatledger_internal.raise_invalid_argument('metadata', 'must have up to 1000000 bytes');
    end if;
end
$function$;

comment on function chatledger_internal.check_header_size(text, jsonb, text) is 'Refuses a header that is too large.';
