-- verify_session(p_session_id) -> (session_id, guarantee, sequence, problem), a row a problem; none when all is well
--
-- Checks stored data against the guarantees: G1 gapless order, G2 times that never decrease, G3 what recognises a retry.
-- p_session_id null: every session (reads all messages).
--
-- Raises: CL001 session not found.
-- Example: select * from chatledger.verify_session('s1');
create or replace function chatledger.verify_session(p_session_id text default null)
returns table (session_id text, guarantee text, sequence integer, problem text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $function$
#variable_conflict use_column
begin
    if p_session_id is not null
        and not exists (
            select from chatledger.sessions as s
            where s.id = p_session_id and chatledger_internal.is_visible(s.deleted_at, null, null))
    then
        perform chatledger_internal.raise_session_not_found(p_session_id);
    end if;

    return query
        select s.id, 'G1', null::integer,
            format('%s messages, first %s, last %s; next_sequence is %s and removed_count %s',
                stored.count, stored.first, stored.last, s.next_sequence, s.removed_count)
        from chatledger.sessions as s
        cross join lateral (
            select count(*) as count, min(m.sequence) as first, max(m.sequence) as last,
                count(*) filter (where m.removed) as removed
            from chatledger.messages as m
            where m.session_id = s.id
        ) as stored
        where (p_session_id is null or s.id = p_session_id)
            and (stored.count <> s.next_sequence or stored.first <> 0 or stored.last <> s.next_sequence - 1
                or stored.removed <> s.removed_count);

    return query
        select checked.session_id, checked.guarantee, checked.sequence, checked.problem
        from (
            select m.session_id, m.sequence, problem.guarantee, problem.problem
            from (
                select stored as message, stored.session_id, stored.sequence, stored.created_at,
                    lag(stored.created_at) over (partition by stored.session_id order by stored.sequence) as previous
                from chatledger.messages as stored
                where p_session_id is null or stored.session_id = p_session_id
            ) as m
            join chatledger.sessions as s on s.id = m.session_id
            cross join lateral (values
                ('G2', case when m.created_at < m.previous then 'was stored before the message in front of it' end),
                ('G2', case when m.created_at > s.updated_at then 'was stored after the session''s updated_at' end),
                ('G3', case when (m.message).amended_version > s.version then 'was amended after the session''s version' end),
                ('G3', case when ((m.message).amended_version is null) <> ((m.message).original_hash is null)
                    then 'is amended without its original''s hash, or the other way round' end),
                ('G10', (chatledger_internal.message_problem(chatledger.message_body(m.message)))[2])
            ) as problem (guarantee, problem)
            where problem.problem is not null and not ((m.message).removed and problem.guarantee = 'G10')
        ) as checked
        order by checked.session_id, checked.sequence;
end
$function$;

revoke all on function chatledger.verify_session(text) from public;
grant execute on function chatledger.verify_session(text) to chatledger_reader, chatledger_writer;
comment on function chatledger.verify_session(text) is 'Checks stored sessions; a row a problem.';
