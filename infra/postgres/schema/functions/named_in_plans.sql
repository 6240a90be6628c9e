-- Returns the ids of versions and agents that plans of the bound tenant name. A plan holds a copy of what it is made
-- of, taken when it was started.
CREATE OR REPLACE FUNCTION named_in_plans() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT DISTINCT m[1] FROM plans p, regexp_matches(p.plan::text, '((?:ver|agent)_[0-9a-z]{26})', 'g') AS m
    WHERE p.tenant_id = current_setting('paddock.tenant_id')
$$;
REVOKE ALL ON FUNCTION named_in_plans FROM PUBLIC;
GRANT EXECUTE ON FUNCTION named_in_plans TO paddock_app;
