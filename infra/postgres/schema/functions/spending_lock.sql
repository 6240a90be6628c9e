-- Returns the number of the advisory lock on the bound tenant's spending. Calls that settle hold it shared; a
-- statement that sums up what was spent holds it alone.
CREATE OR REPLACE FUNCTION spending_lock() RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT hashtextextended('spending ' || current_setting('paddock.tenant_id'), 0)
$$;
