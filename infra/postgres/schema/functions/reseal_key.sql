-- Replaces the sealed text of a provider key of any tenant if it is still `old`. Returns 1, or 0 if it has changed.
-- Used when the encryption key is rotated.
CREATE OR REPLACE FUNCTION reseal_key(the_id uuid, old bytea, new bytea) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    WITH moved AS (
        UPDATE provider_keys k SET sealed = new WHERE k.id = the_id AND k.sealed = old RETURNING 1
    ) SELECT count(*) FROM moved
$$;
REVOKE ALL ON FUNCTION reseal_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reseal_key TO paddock_app;
