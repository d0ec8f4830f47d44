-- same_value(p_one, p_other) -> boolean
-- Whether two JSON values are the same to a client that keeps numbers as doubles, as most do: such a client sends 1.0/3 back
-- with fewer digits than it was stored with.
create or replace function chatledger_internal.same_value(p_one jsonb, p_other jsonb)
returns boolean
language sql
immutable
as $function$
    select case
        when p_one is not distinct from p_other then true
        when p_one is null or p_other is null or jsonb_typeof(p_one) <> jsonb_typeof(p_other) then false
        else case jsonb_typeof(p_one)
            when 'number' then case
                -- Others have no double.
                when abs(p_one::numeric) between 1e-300 and 1e300 and abs(p_other::numeric) between 1e-300 and 1e300
                    then p_one::float8 = p_other::float8
                else false
            end
            when 'array' then jsonb_array_length(p_one) = jsonb_array_length(p_other) and not exists (
                select from jsonb_array_elements(p_one) with ordinality as one (element, position)
                join jsonb_array_elements(p_other) with ordinality as other (element, position) using (position)
                where not chatledger_internal.same_value(one.element, other.element))
            when 'object' then not exists (
                select from jsonb_each(p_one) as one
                full join jsonb_each(p_other) as other using (key)
                where not chatledger_internal.same_value(one.value, other.value))
            else false
        end
    end
$function$;

comment on function chatledger_internal.same_value(jsonb, jsonb) is 'Whether two JSON values are the same as doubles.';
