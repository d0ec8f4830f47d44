-- is_visible(p_deleted_at, p_session_user, p_user_id) -> boolean
-- True when the session is live, and p_user_id is null (a trusted caller) or its user.
--
-- Written into each query by the planner. As a case: a bare "deleted_at is null" beside "id = …" would let it take the index
-- of a user's sessions instead of the primary key, as good as any while the table is empty, and a connection keeps its plans.
create or replace function chatledger_internal.is_visible(p_deleted_at timestamptz, p_session_user text, p_user_id text)
returns boolean
language sql
immutable
parallel safe
as $function$
    select case when p_deleted_at is null then p_user_id is null or p_session_user = p_user_id end
$function$;

comment on function chatledger_internal.is_visible(timestamptz, text, text) is 'Whether a session is there for a user.';
