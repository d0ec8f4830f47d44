-- tail_of(p_session_id, p_next_sequence, p_version, p_updated_at) -> (next_sequence, version, updated_at), one row
-- Where a session is now: what its row says, and what was appended since the row was last changed. Inlined.
create or replace function chatledger_internal.tail_of(
    p_session_id text,
    p_next_sequence integer,
    p_version bigint,
    p_updated_at timestamptz
)
returns table (next_sequence integer, version bigint, updated_at timestamptz)
language sql
stable
rows 1
as $function$
    select greatest(p_next_sequence, last.sequence + 1), greatest(p_version, last.version),
        greatest(p_updated_at, last.created_at)
    from (select) as one
    left join lateral (
        select m.sequence, m.version, m.created_at
        from chatledger.messages as m
        where m.session_id = p_session_id and not m.removed
        order by m.sequence desc
        limit 1
    ) as last on true
$function$;

comment on function chatledger_internal.tail_of(text, integer, bigint, timestamptz) is 'Where a session is now.';
