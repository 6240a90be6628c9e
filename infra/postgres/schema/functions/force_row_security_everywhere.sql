-- Puts row-level security on every table that holds rows of tenants, partitions included. Tables that have it already
-- are not locked. Returns how many tables were changed.
CREATE OR REPLACE FUNCTION force_row_security_everywhere() RETURNS integer
LANGUAGE plpgsql SET search_path = public, pg_temp
AS $$
DECLARE
    guarded regclass;
    changed integer := 0;
BEGIN
    FOR guarded IN
        SELECT c.oid FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND (c.relname = 'tenants' OR EXISTS (
              SELECT FROM pg_attribute a
              WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped))
          AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND EXISTS (
              SELECT FROM pg_policy p
              WHERE p.polrelid = c.oid AND p.polname = 'of_the_owner' AND c.relowner = ANY (p.polroles)))
        ORDER BY c.oid
    LOOP
        PERFORM force_row_security(guarded);
        changed := changed + 1;
    END LOOP;
    RETURN changed;
END $$;
REVOKE ALL ON FUNCTION force_row_security_everywhere FROM PUBLIC;
