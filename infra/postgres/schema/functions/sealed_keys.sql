-- Lists the sealed provider keys of all tenants, for the rotation of the encryption key. The texts are useless without
-- the old key.
CREATE OR REPLACE FUNCTION sealed_keys(after uuid, most integer) RETURNS TABLE (id uuid, sealed bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT k.id, k.sealed FROM provider_keys k WHERE after IS NULL OR k.id > after ORDER BY k.id LIMIT most
$$;
REVOKE ALL ON FUNCTION sealed_keys FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sealed_keys TO paddock_app;
