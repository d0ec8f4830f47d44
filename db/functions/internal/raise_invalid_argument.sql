-- raise_invalid_argument(p_argument, p_problem) -> never returns
-- CL008: an argument that no call can have.
create or replace function chatledger_internal.raise_invalid_argument(p_argument text, p_problem text)
returns void
language plpgsql
immutable
as $function$
begin
    raise exception using
        errcode = 'CL008',
        message = format('%s %s', p_argument, p_problem),
        detail = jsonb_build_object('argument', p_argument)::text,
        hint = 'Correct the argument and call again.';
end
$function$;

comment on function chatledger_internal.raise_invalid_argument(text, text) is 'Raises CL008.';
