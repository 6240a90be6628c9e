-- Returns those of `names` that versions of agents refer to which were not deleted. The others may leave the caches.
CREATE OR REPLACE FUNCTION known_environments(names text[]) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT n FROM unnest(names) AS n
    WHERE EXISTS (SELECT FROM agent_versions v JOIN agents a ON a.id = v.agent_id
                  WHERE v.environment = n AND a.deleted_at IS NULL)
$$;
REVOKE ALL ON FUNCTION known_environments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION known_environments TO paddock_app;
