-- Removes artifact bodies that have reached object storage. Returns the ids of those whose artifact no longer exists.
-- Repeating the call returns the same: a body that does not wait may have been stored by an earlier call.
CREATE OR REPLACE FUNCTION stored_bodies(ids uuid[]) RETURNS SETOF uuid
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    DELETE FROM artifact_bodies b WHERE b.id = ANY (ids);
    SELECT i.id FROM unnest(ids) AS i(id) WHERE NOT EXISTS (SELECT FROM artifacts a WHERE a.id = i.id)
$$;
REVOKE ALL ON FUNCTION stored_bodies FROM PUBLIC;
GRANT EXECUTE ON FUNCTION stored_bodies TO paddock_app;
