-- update_session(p_session_id, p_user_id, p_title, p_only_if_empty, p_metadata, p_pinned, p_status)
--     -> chatledger.session_header, as it is afterwards
--
-- Changes what is given; a null argument leaves its field alone; an empty title takes the title away.
--
-- p_session_id     the session
-- p_user_id        only if the session belongs to this user; null skips the check (a trusted caller)
-- p_title          the new title, up to 1,000 characters
-- p_only_if_empty  set the title only while the session has none
-- p_metadata       merged key by key, up to 1,000,000 bytes; a key given as null is removed
-- p_pinned         listed first; a pin does not move the session up its list otherwise
-- p_status         a word of the caller's
--
-- Idempotent: setting what is already so changes nothing, nor the version.
-- Locks:      the session's row.
-- Writes:     sessions.
-- Raises:     CL001 session not found, CL008 invalid argument; 40001.
-- Example:    select * from chatledger.update_session('s1', p_title => 'Trip to Oslo', p_only_if_empty => true);
create or replace function chatledger.update_session(
    p_session_id text,
    p_user_id text default null,
    p_title text default null,
    p_only_if_empty boolean default false,
    p_metadata jsonb default null,
    p_pinned boolean default null,
    p_status text default null
)
returns chatledger.session_header
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    v_session chatledger.sessions;
    v_changed chatledger.sessions;
begin
    if jsonb_typeof(p_metadata) <> 'object' then
        perform chatledger_internal.raise_invalid_argument('metadata', 'must be a JSON object');
    end if;

    perform chatledger_internal.check_header_size(p_title, p_metadata, p_status);

    v_session := chatledger_internal.lock_session(p_session_id, p_user_id);

    v_changed := v_session;
    if not coalesce(p_only_if_empty, false) or coalesce(v_session.title, '') = '' then
        v_changed.title := nullif(coalesce(p_title, v_session.title), '');
    end if;
    if p_metadata is not null then
        v_changed.metadata := chatledger_internal.merge_keys(v_session.metadata, p_metadata);
    end if;
    v_changed.pinned := coalesce(p_pinned, v_session.pinned);
    v_changed.status := coalesce(p_status, v_session.status);

    v_changed := chatledger_internal.store_header(v_session, v_changed);
    return chatledger_internal.header_of(v_changed);
end
$function$;

revoke all on function chatledger.update_session(text, text, text, boolean, jsonb, boolean, text) from public;
grant execute on function chatledger.update_session(text, text, text, boolean, jsonb, boolean, text) to chatledger_writer;
comment on function chatledger.update_session(text, text, text, boolean, jsonb, boolean, text) is
    'Changes a session''s title, metadata, pin and status.';
