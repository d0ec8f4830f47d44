-- with_ids(p_messages) -> jsonb[]
-- The messages of a batch, with an id for each that has none.
-- Raises: CL007, CL008: the batch cannot be stored.
create or replace function chatledger_internal.with_ids(p_messages jsonb[])
returns jsonb[]
language plpgsql
as $function$
begin
    perform chatledger_internal.check_messages(p_messages);
    return array(
        select jsonb_build_object('message_id', gen_random_uuid()) || input.message
        from unnest(p_messages) with ordinality as input (message, position)
        order by input.position);
end
$function$;

comment on function chatledger_internal.with_ids(jsonb[]) is 'The messages of a batch, each with an id.';
