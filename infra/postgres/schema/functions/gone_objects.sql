-- Notes that objects were deleted from object storage. An object with `again_at` set stays on the list for its second
-- deletion.
CREATE OR REPLACE FUNCTION gone_objects(keys text[], now timestamptz) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    DELETE FROM doomed_objects d WHERE d.key = ANY (keys) AND d.again_at IS NULL AND d.due <= now;
    UPDATE doomed_objects d SET due = d.again_at, again_at = NULL
    WHERE d.key = ANY (keys) AND d.again_at IS NOT NULL;
$$;
REVOKE ALL ON FUNCTION gone_objects FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gone_objects TO paddock_app;
