-- Who may do what, applied by every migrate: a restore into a server without these roles is mended by it too. The functions and
-- views have their own grants beside them.
--
-- chatledger_reader  reads
-- chatledger_writer  reads and writes, through functions only
-- chatledger_admin   both, and purges

-- Roles belong to the whole server: another database's ledger, or somebody who may create roles, has made them already, or
-- is making them now.
do $do$
declare
    v_role text;
begin
    foreach v_role in array array['chatledger_reader', 'chatledger_writer', 'chatledger_admin'] loop
        if to_regrole(v_role) is null then
            begin
                execute format('create role %I nologin', v_role);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
    -- Reader and writer are siblings; the admin is both.
    if not pg_has_role('chatledger_admin', 'chatledger_reader', 'member')
        or not pg_has_role('chatledger_admin', 'chatledger_writer', 'member')
    then
        grant chatledger_reader, chatledger_writer to chatledger_admin;
    end if;
end
$do$;

revoke all on schema chatledger, chatledger_internal
    from public, chatledger_reader, chatledger_writer, chatledger_admin;
revoke all on all tables in schema chatledger from public, chatledger_reader, chatledger_writer, chatledger_admin;
grant usage on schema chatledger to chatledger_reader, chatledger_writer, chatledger_admin;
grant select on all tables in schema chatledger to chatledger_reader, chatledger_writer;
