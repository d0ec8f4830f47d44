-- patched_body(p_body, p_patch) -> jsonb
-- A message's body with each key of the patch set, or removed where it is null; "metadata" is merged key by key.
create or replace function chatledger_internal.patched_body(p_body jsonb, p_patch jsonb)
returns jsonb
language sql
stable
as $function$
    select case jsonb_typeof(p_patch -> 'metadata')
        when 'object' then chatledger_internal.merge_keys(p_body, p_patch) || jsonb_build_object('metadata',
            chatledger_internal.merge_keys(nullif(p_body -> 'metadata', 'null'), p_patch -> 'metadata'))
        else chatledger_internal.merge_keys(p_body, p_patch)
    end
$function$;

comment on function chatledger_internal.patched_body(jsonb, jsonb) is 'A message''s body with a patch applied.';
