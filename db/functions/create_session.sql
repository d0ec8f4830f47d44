-- create_session(p_session_id, p_user_id, p_title, p_metadata, p_status) -> chatledger.session_header
--
-- Creates a session.
--
-- p_session_id  the caller's id for it, up to 255 characters
-- p_user_id     whose it is; null: nobody's, so that only trusted callers find it
-- p_title       what to call it
-- p_metadata    an object of the caller's; null: {}
-- p_status      a word of the caller's, to filter lists by
--
-- Idempotent: the same id and user again returns the session as it is, and changes nothing.
-- Locks:      none; waits for a transaction that is creating the same id.
-- Writes:     sessions, watches.
-- Raises:     CL001 the id belongs to another user or to a deleted session, CL008 invalid argument; 40001.
-- Example:    select * from chatledger.create_session('s1', 'u1');
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
    perform chatledger_internal.check_header_size(p_title, p_metadata, p_status);

    v_session.id := p_session_id;
    v_session.user_id := p_user_id;
    v_session.title := p_title;
    v_session.metadata := coalesce(p_metadata, '{}');
    v_session.status := coalesce(p_status, 'active');
    v_session.created_at := clock_timestamp();
    v_session.updated_at := v_session.created_at;
    perform chatledger_internal.insert_session(v_session);

    -- As it is now, be it new or not.
    v_session := chatledger_internal.session_now(p_session_id, null);
    if v_session.id is null or v_session.user_id is distinct from p_user_id then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;
    return chatledger_internal.header_of(v_session);
end
$function$;

revoke all on function chatledger.create_session(text, text, text, jsonb, text) from public;
grant execute on function chatledger.create_session(text, text, text, jsonb, text) to chatledger_writer;
comment on function chatledger.create_session(text, text, text, jsonb, text) is
    'Creates a session; the same id and user again returns what is there.';
