-- patched_body(p_body, p_patch) -> jsonb
-- A message's body with each key of the patch set, or removed where it is null; "metadata" is merged key by key. Internal.
create or replace function chatledger.patched_body(p_body jsonb, p_patch jsonb)
returns jsonb
language sql
stable
as $function$
    select case jsonb_typeof(p_patch -> 'metadata')
        when 'object' then chatledger.merge_keys(p_body, p_patch) || jsonb_build_object('metadata',
            chatledger.merge_keys(nullif(p_body -> 'metadata', 'null'), p_patch -> 'metadata'))
        else chatledger.merge_keys(p_body, p_patch)
    end
$function$;

revoke all on function chatledger.patched_body(jsonb, jsonb) from public;
comment on function chatledger.patched_body(jsonb, jsonb) is 'Internal: a message''s body with a patch applied.';
