-- Claims up to `most` evaluations of any tenant whose metrics are still to be computed. Stops after `most_bytes` of
-- text; one evaluation is always claimed, however large it is.
CREATE OR REPLACE FUNCTION claim_evaluations(
    most integer, most_bytes bigint, now timestamptz, until timestamptz
) RETURNS SETOF evaluations
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    -- An evaluation that has lost its worker three times is given up.
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
REVOKE ALL ON FUNCTION claim_evaluations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_evaluations TO paddock_app;
