-- Replaces the sealed text of a secret of any tenant if it is still `old`. Returns 1, or 0 if it has changed.
-- Used when the encryption key is rotated.
CREATE OR REPLACE FUNCTION reseal_secret(the_id uuid, old bytea, new bytea) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    WITH moved AS (
        UPDATE secrets s SET sealed = new WHERE s.id = the_id AND s.sealed = old RETURNING 1
    ) SELECT count(*) FROM moved
$$;
REVOKE ALL ON FUNCTION reseal_secret FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reseal_secret TO paddock_app;
