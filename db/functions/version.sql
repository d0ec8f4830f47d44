-- version() -> text
--
-- The release of chatledger whose functions this database has.
--
-- Locks:      none.
-- Writes:     nothing.
-- Raises:     nothing.
-- Example:    select chatledger.version();
create or replace function chatledger.version()
returns text
language sql
immutable
as $function$
    select '0.1.0'
$function$;

revoke all on function chatledger.version() from public;
grant execute on function chatledger.version() to chatledger_reader, chatledger_writer;
comment on function chatledger.version() is 'The release of chatledger whose functions this database has.';
