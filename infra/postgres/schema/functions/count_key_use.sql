-- Adds to the usage counters of API keys of any tenant. Use n concerns the key `ids[n]`.
CREATE OR REPLACE FUNCTION count_key_use(ids uuid[], uses bigint[], times timestamptz[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    UPDATE api_keys k SET usage_count = k.usage_count + u.uses,
                          last_used_at = greatest(k.last_used_at, u.at)
    FROM unnest(ids, uses, times) AS u(id, uses, at) WHERE k.id = u.id
$$;
REVOKE ALL ON FUNCTION count_key_use FROM PUBLIC;
GRANT EXECUTE ON FUNCTION count_key_use TO paddock_app;
