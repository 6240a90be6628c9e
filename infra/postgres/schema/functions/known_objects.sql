-- Returns those of `paths` that a row of any tenant refers to: archives, bundles and environments of agents that were
-- not deleted, uploaded files, and workspace files.
CREATE OR REPLACE FUNCTION known_objects(paths text[]) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT p FROM unnest(paths) AS p
    WHERE EXISTS (SELECT FROM agent_versions v JOIN agents a ON a.id = v.agent_id
                  WHERE (v.tarball_path = p OR v.bundle_path = p
                         OR 'environments/' || v.environment || '.tar.gz' = p) AND a.deleted_at IS NULL)
       OR EXISTS (SELECT FROM workspace_files f WHERE f.key = p)
       OR EXISTS (SELECT FROM files f WHERE f.key = p)
$$;
REVOKE ALL ON FUNCTION known_objects FROM PUBLIC;
GRANT EXECUTE ON FUNCTION known_objects TO paddock_app;
