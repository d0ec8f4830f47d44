-- begin_stream(p_session_id, p_holder, p_ttl, p_user_id, p_stream_id, p_force, p_max_streams)
--     -> (fence, expires_at, version, next_sequence, message_count), one row
--
-- Takes the lease of a session's one stream. The holder passes the fence to every write, renews the lease before it runs
-- out, and ends it. A lease that ran out is free; its holder's writes are refused from then on. The database's clock
-- decides, nobody else's.
--
-- p_session_id   the session
-- p_holder       who streams, for people: host and process, say
-- p_ttl          for how long, up to a day
-- p_user_id      only if the session belongs to this user; null skips the check (a trusted caller)
-- p_stream_id    the caller's id for this stream, chosen before the first try; null: generated, and a call whose outcome is
--                unknown cannot be repeated
-- p_force        take over a lease that is held
-- p_max_streams  at most so many live streams of the session's user; a session of nobody's has no limit. Exact under READ
--                COMMITTED, where the count sees what was committed while it waited
--
-- The lease is no part of the session's content: taking, renewing and ending it leave version and updated_at alone, so they
-- wake no follower and spoil no cache. version, next_sequence and message_count say where the session is. Fences differ from
-- each other in all sessions, and cannot be guessed.
--
-- Idempotent: the same p_stream_id again, while it holds the lease, returns the same fence.
-- Locks:      with p_max_streams the user, for at most five seconds; then the session's row; then the stream's. In this
--             order, so that nobody who waits holds a session.
-- Writes:     streams; user_locks with p_max_streams.
-- Raises:     CL001 session not found, CL006 stream busy, CL008 invalid argument, CL013 too many streams; 40001; 55P03 when
--             another transaction has kept the user for five seconds.
-- Example:    select fence from chatledger.begin_stream('s1', 'host-1:4711', '1 minute');
create or replace function chatledger.begin_stream(
    p_session_id text,
    p_holder text,
    p_ttl interval default '1 hour',
    p_user_id text default null,
    p_stream_id text default null,
    p_force boolean default false,
    p_max_streams integer default null
)
returns table (fence bigint, expires_at timestamptz, version bigint, next_sequence integer, message_count integer)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
declare
    v_session   chatledger.sessions;
    v_stream    chatledger.streams;
    v_stream_id text := coalesce(p_stream_id, gen_random_uuid()::text);
    v_count     bigint;
    v_now       timestamptz;
begin
    if p_holder is null or char_length(p_holder) not between 1 and 255 then
        perform chatledger_internal.raise_invalid_argument('holder', 'must have 1 to 255 characters');
    end if;
    if char_length(p_stream_id) not between 1 and 255 then
        perform chatledger_internal.raise_invalid_argument('stream_id', 'must have 1 to 255 characters, or be null');
    end if;
    if p_max_streams < 1 then
        perform chatledger_internal.raise_invalid_argument('max_streams', 'must be 1 or more, or null for no limit');
    end if;
    perform chatledger_internal.check_ttl(p_ttl);

    if p_max_streams is not null then
        perform chatledger_internal.lock_user((chatledger_internal.session_now(p_session_id, p_user_id)).user_id);
    end if;
    v_session := chatledger_internal.lock_session(p_session_id, p_user_id);
    select st.* into v_stream
    from chatledger.streams as st
    where st.session_id = p_session_id
    for update;
    v_now := clock_timestamp();

    if v_stream.ended_at is null and v_stream.expires_at > v_now then
        if v_stream.stream_id = p_stream_id then
            -- A retry: the outcome of the first try was unknown.
            return query select v_stream.fence, v_stream.expires_at, v_session.version, v_session.next_sequence,
                v_session.next_sequence - v_session.removed_count;
            return;
        end if;
        if not coalesce(p_force, false) then
            raise exception using
                errcode = 'CL006',
                message = format('session "%s" is streamed by %s', p_session_id, v_stream.holder),
                detail = jsonb_build_object('session_id', p_session_id, 'holder', v_stream.holder,
                    'expires_at', v_stream.expires_at)::text,
                hint = 'Wait until that stream has ended or its lease has run out, or take it over by force.';
        end if;
    end if;

    if p_max_streams is not null and v_session.user_id is not null then
        select count(*) into v_count
        from chatledger.streams as st
        where st.user_id = v_session.user_id and st.ended_at is null and st.expires_at > v_now
            and st.session_id <> p_session_id;
        if v_count >= p_max_streams then
            raise exception using
                errcode = 'CL013',
                message = format('the user has %s streams already, of at most %s', v_count, p_max_streams),
                detail = jsonb_build_object('session_id', p_session_id, 'streams', v_count,
                    'max_streams', p_max_streams)::text,
                hint = 'Wait until one of them has ended.';
        end if;
    end if;

    v_stream.session_id := p_session_id;
    v_stream.fence := nextval('chatledger.fences') * 1048576 + floor(random() * 1048576)::bigint;
    v_stream.expires_at := v_now + p_ttl;
    insert into chatledger.streams as st (session_id, user_id, stream_id, holder, fence, began_at, expires_at)
    values (p_session_id, v_session.user_id, v_stream_id, p_holder, v_stream.fence, v_now, v_stream.expires_at)
    on conflict (session_id) do update
    set user_id = excluded.user_id, stream_id = excluded.stream_id, holder = excluded.holder, fence = excluded.fence,
        began_at = excluded.began_at, expires_at = excluded.expires_at, ended_at = null;
    return query select v_stream.fence, v_stream.expires_at, v_session.version, v_session.next_sequence,
        v_session.next_sequence - v_session.removed_count;
end
$function$;

revoke all on function chatledger.begin_stream(text, text, interval, text, text, boolean, integer) from public;
grant execute on function chatledger.begin_stream(text, text, interval, text, text, boolean, integer) to chatledger_writer;
comment on function chatledger.begin_stream(text, text, interval, text, text, boolean, integer) is
    'Takes the lease of a session''s one stream; returns its fence.';
