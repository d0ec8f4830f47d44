-- apply_changes(p_object, p_changes) -> jsonb
-- Sets each key to the "to" of its change, also to null, and removes those whose change has none; leaves the others.
create or replace function chatledger_internal.apply_changes(p_object jsonb, p_changes jsonb)
returns jsonb
language sql
stable
as $function$
    select (coalesce(p_object, '{}') || coalesce(jsonb_object_agg(change.key, change.value -> 'to')
            filter (where change.value ? 'to'), '{}'))
        - coalesce(array_agg(change.key) filter (where not change.value ? 'to'), '{}')
    from jsonb_each(p_changes) as change
$function$;

comment on function chatledger_internal.apply_changes(jsonb, jsonb) is 'Applies changes of save_session, key by key.';
