-- Returns the smallest UUIDv7 of a moment. Record tables are partitioned by id, so an id alone leads to its partition,
-- and records that arrive late do not need an old partition.
CREATE OR REPLACE FUNCTION first_id(at timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE
AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;
