-- check_snapshot(p_session_id, p_next_sequence, p_version) -> void
-- Under REPEATABLE READ and SERIALIZABLE: refuses a session to which somebody appended since the transaction's snapshot. Such
-- messages are not seen, and an append does not change the session's row; but an insert collides with them.
-- Writes: messages, and takes it back.
-- Raises: 40001.
create or replace function chatledger_internal.check_snapshot(p_session_id text, p_next_sequence integer, p_version bigint)
returns void
language plpgsql
as $function$
declare
    v_id text := 'check ' || gen_random_uuid();
begin
    insert into chatledger.messages (session_id, sequence, message_id, version, created_at)
    values (p_session_id, p_next_sequence, v_id, p_version + 1, clock_timestamp())
    on conflict do nothing;
    delete from chatledger.messages as m where m.session_id = p_session_id and m.message_id = v_id;
end
$function$;

comment on function chatledger_internal.check_snapshot(text, integer, bigint) is
    'Refuses a session that changed since the transaction''s snapshot.';
