-- Lists the sealed secrets of all tenants, for the rotation of the encryption key. The texts are useless without the
-- old key.
CREATE OR REPLACE FUNCTION sealed_secrets(after uuid, most integer) RETURNS TABLE (id uuid, sealed bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT s.id, s.sealed FROM secrets s WHERE after IS NULL OR s.id > after ORDER BY s.id LIMIT most
$$;
REVOKE ALL ON FUNCTION sealed_secrets FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sealed_secrets TO paddock_app;
