"""Row-level security holds the owner of the tables too.

A session that a pooler kept from taking on the application's role works as whoever logged in, often the owner, whom
Postgres lets past row-level security. Forced, it sees the bound tenant alone. What rightly reads as the owner are
the functions and views that the application's role calls, and what says `paddock.every_tenant`: migrations,
operators' commands, dumps.
"""

from infra.postgres.script import run

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    run(
        """
        CREATE FUNCTION force_row_security(guarded regclass) RETURNS void
        LANGUAGE plpgsql SET search_path = public, pg_temp AS $$ BEGIN
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', guarded);
            EXECUTE format('DROP POLICY IF EXISTS of_the_owner ON %s', guarded);
            -- In a function of the owner, the session is still the application's.
            EXECUTE format($f$
                CREATE POLICY of_the_owner ON %s TO CURRENT_USER USING (
                    session_user = 'paddock_app' OR current_setting('role') = 'paddock_app'
                    OR current_setting('paddock.every_tenant', true) = 'on')
            $f$, guarded);
        END $$;

        -- For every table that holds rows of tenants, partitions included. What is forced already is not locked.
        CREATE FUNCTION force_row_security_everywhere() RETURNS integer
        LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
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
        REVOKE ALL ON FUNCTION force_row_security, force_row_security_everywhere FROM PUBLIC;

        DO $do$ BEGIN
            EXECUTE replace(pg_get_functiondef('make_partitions'::regproc),
                $q$EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', part)$q$,
                $q$PERFORM force_row_security(part::regclass)$q$);
            -- A partition whose rows it cannot see would look empty.
            EXECUTE replace(pg_get_functiondef('drop_empty_partition'::regproc),
                'PERFORM pg_advisory_xact_lock(1885430635, 2);',
                $q$PERFORM pg_advisory_xact_lock(1885430635, 2), set_config('paddock.every_tenant', 'on', true);$q$);
        END $do$;
        """
    )
