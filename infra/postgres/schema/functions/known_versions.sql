-- Returns those of `ids` whose agents were not deleted. The others may leave the caches.
CREATE OR REPLACE FUNCTION known_versions(ids uuid[]) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT v.id FROM agent_versions v JOIN agents a ON a.id = v.agent_id
    WHERE v.id = ANY (ids) AND a.deleted_at IS NULL
$$;
REVOKE ALL ON FUNCTION known_versions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION known_versions TO paddock_app;
