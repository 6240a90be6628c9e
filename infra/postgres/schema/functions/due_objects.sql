-- Returns the keys of objects of any tenant that are to be deleted from object storage by now.
CREATE OR REPLACE FUNCTION due_objects(now timestamptz, most integer) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    SELECT d.key FROM doomed_objects d WHERE d.due <= now ORDER BY d.due LIMIT most
$$;
REVOKE ALL ON FUNCTION due_objects FROM PUBLIC;
GRANT EXECUTE ON FUNCTION due_objects TO paddock_app;
