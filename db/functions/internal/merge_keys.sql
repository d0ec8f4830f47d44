-- merge_keys(p_object, p_patch) -> jsonb
-- Sets each key of the patch, removes those that it gives as null, leaves the others.
create or replace function chatledger_internal.merge_keys(p_object jsonb, p_patch jsonb)
returns jsonb
language sql
stable
as $function$
    select (coalesce(p_object, '{}') || p_patch)
        - array(select field.key from jsonb_each(p_patch) as field where field.value = 'null')
$function$;

comment on function chatledger_internal.merge_keys(jsonb, jsonb) is 'Merges metadata key by key.';
