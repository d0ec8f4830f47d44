-- lock_user(p_user_id) -> void
-- Lets one transaction at a time count this user's streams; null: nothing to do. Waits for at most five seconds, since a
-- transaction may be left open. A row and no advisory lock: to lock a row of ours takes a right to call us.
-- Writes: user_locks.
-- Raises: 55P03.
create or replace function chatledger_internal.lock_user(p_user_id text)
returns void
language plpgsql
set lock_timeout = '5s'
as $function$
begin
    if p_user_id is not null then
        insert into chatledger.user_locks (user_id) values (p_user_id) on conflict (user_id) do nothing;
        perform from chatledger.user_locks as u where u.user_id = p_user_id for update;
    end if;
end
$function$;

comment on function chatledger_internal.lock_user(text) is 'Lets one transaction at a time count a user''s streams.';
