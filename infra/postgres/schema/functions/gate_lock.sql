-- Returns the number of the advisory lock on a gate: a thread or a concurrency key of a tenant.
CREATE OR REPLACE FUNCTION gate_lock(of_tenant text, of_kind text, of_name text) RETURNS bigint
LANGUAGE sql IMMUTABLE
AS $$
    SELECT hashtextextended(of_kind || ' ' || of_tenant || ' ' || of_name, 16)
$$;
