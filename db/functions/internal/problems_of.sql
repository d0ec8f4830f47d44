-- problems_of(p_session_id) -> (guarantee, sequence, problem), a row a problem of this session
create or replace function chatledger_internal.problems_of(p_session_id text)
returns table (guarantee text, sequence integer, problem text)
language plpgsql
stable
as $function$
#variable_conflict use_column
declare
    v_session  chatledger.sessions;
    v_count    bigint;
    v_first    integer;
    v_last     integer;
    v_removed  bigint;
begin
    select s.* into v_session from chatledger.sessions as s where s.id = p_session_id;
    select tail.next_sequence, tail.version into v_session.next_sequence, v_session.version
    from chatledger_internal.tail_of(p_session_id, v_session.next_sequence, v_session.version, v_session.updated_at) as tail;

    select count(*), min(m.sequence), max(m.sequence), count(*) filter (where m.removed)
    into v_count, v_first, v_last, v_removed
    from chatledger.messages as m
    where m.session_id = p_session_id;
    if v_count <> v_session.next_sequence or v_first <> 0 or v_last <> v_session.next_sequence - 1
        or v_removed <> v_session.removed_count
    then
        return query select 'G1', null::integer,
            format('%s messages, first %s, last %s, %s removed; next_sequence is %s and removed_count %s',
                v_count, v_first, v_last, v_removed, v_session.next_sequence, v_session.removed_count);
    end if;

    return query
        select found.guarantee, stored.sequence, found.problem
        from (
            select m as message, m.sequence, m.created_at, m.version, m.amended_version, m.original_hash, m.removed,
                lag(m.created_at) over in_order as created_before, lag(m.version) over in_order as version_before
            from chatledger.messages as m
            where m.session_id = p_session_id
            window in_order as (order by m.sequence)
        ) as stored
        cross join lateral (values
            ('G1', case when stored.version < stored.version_before
                then 'has a lower version than the message in front of it' end),
            ('G2', case when stored.created_at < stored.created_before
                then 'was stored before the message in front of it' end),
            ('G3', case when stored.amended_version > v_session.version
                then 'was amended after the session''s version' end),
            ('G3', case when (stored.amended_version is null) <> (stored.original_hash is null)
                then 'is amended without its original''s hash, or the other way round' end),
            ('G10', case when not stored.removed
                then (chatledger_internal.message_problem(chatledger.message_body(stored.message)))[2] end)
        ) as found (guarantee, problem)
        where found.problem is not null
        order by stored.sequence;
end
$function$;

comment on function chatledger_internal.problems_of(text) is 'What of a stored session breaks a guarantee.';
