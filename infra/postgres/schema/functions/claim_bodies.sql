-- Claims up to `most` compressed artifact bodies of any tenant that wait for object storage. Stops after `most_bytes`;
-- one body is always claimed, however large it is.
CREATE OR REPLACE FUNCTION claim_bodies(
    most integer, most_bytes bigint, now timestamptz, until timestamptz
) RETURNS TABLE (id uuid, key text, packed bytea)
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    WITH free AS (
        SELECT b.id, octet_length(b.packed) AS size FROM artifact_bodies b
        WHERE b.claimed_until IS NULL OR b.claimed_until < now
        ORDER BY b.id LIMIT most FOR UPDATE SKIP LOCKED
    ), light AS (
        SELECT f.id FROM (SELECT g.id, g.size, sum(g.size) OVER (ORDER BY g.id) AS total FROM free g) AS f
        WHERE f.total - f.size < most_bytes
    )
    UPDATE artifact_bodies b SET claimed_until = until FROM light l WHERE b.id = l.id
    RETURNING b.id, b.key, b.packed
$$;
REVOKE ALL ON FUNCTION claim_bodies FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_bodies TO paddock_app;
