"""Attempts that ended because their worker was stopped: they count for nobody."""

from infra.postgres.script import run

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    run(
        """
        -- `attempt` stays the fencing token, which only ever grows. What of it counts against the limit of attempts is
        -- what is left without these.
        ALTER TABLE executions ADD handovers integer NOT NULL DEFAULT 0;
        ALTER TABLE agent_versions ADD handovers integer NOT NULL DEFAULT 0;
        ALTER TABLE evaluations ADD handovers integer NOT NULL DEFAULT 0;

        CREATE OR REPLACE FUNCTION claim_evaluations(
            most integer, most_bytes bigint, now timestamptz, until timestamptz
        ) RETURNS SETOF evaluations
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
            -- What its workers died of again and again is not tried for ever.
            UPDATE evaluations e SET metrics = 'failed', claimed_until = NULL
            WHERE e.metrics = 'pending' AND e.attempt - e.handovers >= 3 AND e.claimed_until < now;
            WITH free AS (
                SELECT p.id, octet_length(p.prompt) + octet_length(p.response)
                           + coalesce(octet_length(p.retrieved_docs::text), 0) AS size
                FROM evaluations p
                WHERE p.metrics = 'pending' AND (p.claimed_until IS NULL OR p.claimed_until < now)
                ORDER BY p.id LIMIT most FOR UPDATE SKIP LOCKED
            ), light AS (
                SELECT f.id FROM (SELECT g.id, g.size, sum(g.size) OVER (ORDER BY g.id) AS total FROM free g) AS f
                WHERE f.total - f.size < most_bytes
            )
            UPDATE evaluations e SET attempt = e.attempt + 1, claimed_until = until
            FROM light l WHERE e.id = l.id RETURNING e.*
        $$;
        """
    )
