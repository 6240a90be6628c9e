-- Gives claimed artifact bodies back, so that another worker can claim them.
CREATE OR REPLACE FUNCTION release_bodies(ids uuid[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    UPDATE artifact_bodies b SET claimed_until = NULL WHERE b.id = ANY (ids)
$$;
REVOKE ALL ON FUNCTION release_bodies FROM PUBLIC;
GRANT EXECUTE ON FUNCTION release_bodies TO paddock_app;
