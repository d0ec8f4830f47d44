-- create_session(p_session_id, p_user_id, p_title, p_metadata, p_status) -> chatledger.session_header
--
-- Creates a session. Idempotent: the same id and owner again returns the session as it is, and changes nothing.
--
-- Raises: CL001 the id belongs to another user or to a deleted session, CL008 invalid argument; 40001.
-- Example: select * from chatledger.create_session('s1', 'u1');
create or replace function chatledger.create_session(
    p_session_id text,
    p_user_id text default null,
    p_title text default null,
    p_metadata jsonb default null,
    p_status text default 'active'
)
returns chatledger.session_header
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_now     timestamptz := clock_timestamp();
begin
    if p_session_id is null or char_length(p_session_id) not between 1 and 255 then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;
    if char_length(p_user_id) not between 1 and 255 then
        perform chatledger_internal.raise_invalid_argument('user_id', 'must have 1 to 255 characters, or be null');
    end if;
    if jsonb_typeof(p_metadata) <> 'object' then
        perform chatledger_internal.raise_invalid_argument('metadata', 'must be a JSON object');
    end if;
    if chatledger_internal.json_problem(p_metadata) is not null then
        perform chatledger_internal.raise_invalid_argument('metadata', chatledger_internal.json_problem(p_metadata));
    end if;

    insert into chatledger.sessions as s (id, user_id, title, metadata, status, created_at, updated_at)
    values (p_session_id, p_user_id, p_title, coalesce(p_metadata, '{}'), coalesce(p_status, 'active'), v_now, v_now)
    on conflict (id) do nothing
    returning s.* into v_session;

    if not found then
        select s.* into v_session
        from chatledger.sessions as s
        where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, null, null)
            and s.user_id is not distinct from p_user_id;
        if not found then
            perform chatledger_internal.raise_session_not_found(p_session_id);
        end if;
    end if;
    return chatledger_internal.header_of(v_session);
end
$function$;

revoke all on function chatledger.create_session(text, text, text, jsonb, text) from public;
grant execute on function chatledger.create_session(text, text, text, jsonb, text) to chatledger_writer;
comment on function chatledger.create_session(text, text, text, jsonb, text) is
    'Creates a session; the same id and owner again returns what is there.';
