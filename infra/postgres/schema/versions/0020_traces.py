"""What is still to be exported as traces."""

from infra.postgres.script import run

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    run(
        """
        -- When somebody last said that traces are exported: one row, or none.
        CREATE TABLE trace_export (
            one boolean PRIMARY KEY DEFAULT true CHECK (one),
            wanted_at timestamptz NOT NULL
        );
        CREATE TABLE trace_exports (
            execution_id uuid PRIMARY KEY,
            tenant_id text NOT NULL,
            due_at timestamptz NOT NULL,
            tries integer NOT NULL DEFAULT 0
        );
        CREATE INDEX trace_exports_due_at ON trace_exports (due_at);
        -- Rows come and go all the time: what is gone must not be looked at for long.
        ALTER TABLE trace_exports SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

        -- However it ends: what is exported is what ended while traces were wanted. Who has not asked for them in a
        -- week has switched the export off. The last bills and steps are written within a second of the end.
        CREATE FUNCTION note_trace() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$ BEGIN
            INSERT INTO trace_exports (execution_id, tenant_id, due_at)
            SELECT NEW.id, NEW.tenant_id, NEW.completed_at + interval '2 seconds'
            FROM trace_export x WHERE x.wanted_at > NEW.completed_at - interval '7 days'
            ON CONFLICT DO NOTHING;
            RETURN NULL;
        END $$;
        CREATE TRIGGER note_trace AFTER UPDATE OF completed_at ON executions FOR EACH ROW
            WHEN (NEW.completed_at IS NOT NULL AND OLD.completed_at IS NULL AND NEW.parent_id IS NULL)
            EXECUTE FUNCTION note_trace();

        CREATE FUNCTION want_traces(at timestamptz) RETURNS void
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            INSERT INTO trace_export (wanted_at) VALUES (at)
            ON CONFLICT (one) DO UPDATE SET wanted_at = greatest(trace_export.wanted_at, excluded.wanted_at)
        $$;
        -- What is claimed is due again at `until`, if nobody says what became of it.
        CREATE FUNCTION claim_traces(most integer, at timestamptz, until timestamptz)
        RETURNS TABLE (execution_id uuid, tenant_id text, tries integer)
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            WITH free AS MATERIALIZED (
                SELECT x.execution_id FROM trace_exports x
                WHERE x.due_at <= at ORDER BY x.due_at LIMIT most FOR UPDATE SKIP LOCKED
            )
            UPDATE trace_exports x SET due_at = until, tries = x.tries + 1
            FROM free f WHERE x.execution_id = f.execution_id
            RETURNING x.execution_id, x.tenant_id, x.tries
        $$;
        CREATE FUNCTION exported_traces(ids uuid[]) RETURNS void
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            DELETE FROM trace_exports x WHERE x.execution_id = ANY (ids)
        $$;
        CREATE FUNCTION postpone_traces(ids uuid[], until timestamptz, counts boolean) RETURNS void
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            UPDATE trace_exports x
            SET due_at = until, tries = CASE WHEN counts THEN x.tries ELSE greatest(x.tries - 1, 0) END
            WHERE x.execution_id = ANY (ids)
        $$;
        REVOKE ALL ON FUNCTION note_trace, want_traces, claim_traces, exported_traces, postpone_traces FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION want_traces, claim_traces, exported_traces, postpone_traces TO paddock_app;

        ALTER TABLE trace_exports ENABLE ROW LEVEL SECURITY;
        CREATE POLICY bound ON trace_exports TO paddock_app
            USING (tenant_id = current_setting('paddock.tenant_id', true));
        GRANT SELECT ON trace_exports TO paddock_app;
        """
    )
