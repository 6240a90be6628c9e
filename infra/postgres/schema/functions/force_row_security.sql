-- Puts row-level security on a table, for its owner as well. The owner sees all rows only after setting
-- `paddock.every_tenant`.
CREATE OR REPLACE FUNCTION force_row_security(guarded regclass) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp
AS $$ BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', guarded);
    EXECUTE format('DROP POLICY IF EXISTS of_the_owner ON %s', guarded);
    -- Within a function of the owner, the session is still the application's.
    EXECUTE format($f$
        CREATE POLICY of_the_owner ON %s TO CURRENT_USER USING (
            session_user = 'paddock_app' OR current_setting('role') = 'paddock_app'
            OR current_setting('paddock.every_tenant', true) = 'on')
    $f$, guarded);
END $$;
REVOKE ALL ON FUNCTION force_row_security FROM PUBLIC;
