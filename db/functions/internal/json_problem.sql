-- json_problem(p_json) -> text
-- Why some reader could not read this JSON, or null. jsonb holds what common JSON parsers do not take: nesting by the thousand
-- (pydantic's ends at 200 levels), numbers of 131,072 digits (Python's ends at 4,300). Somebody would store a message that
-- then nobody can load. One expression, so that Postgres inlines it.
create or replace function chatledger_internal.json_problem(p_json jsonb)
returns text
language sql
immutable
as $function$
    select case
        when p_json @? 'strict $.**{101}' then 'is nested more than 100 deep'
        when p_json @? 'strict $.** ? (@ >= 1e1000 || @ <= -1e1000)' then 'has a number of more than 1000 digits'
    end
$function$;

comment on function chatledger_internal.json_problem(jsonb) is 'Why JSON could not be read everywhere, or null.';
