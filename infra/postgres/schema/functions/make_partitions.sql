-- Creates the partitions of a record table for the month of `at` and `ahead` more months. Returns how many were
-- missing.
CREATE OR REPLACE FUNCTION make_partitions(record_table text, at timestamptz, ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    made integer := 0;
    begun timestamptz;
    ended timestamptz;
    part text;
BEGIN
    IF record_table NOT IN ('evaluations', 'artifacts', 'costs') THEN
        RAISE EXCEPTION 'no record table: %', record_table;
    END IF;
    PERFORM pg_advisory_xact_lock(1885430635, 2);
    FOR number IN 0..ahead LOOP
        begun := (date_trunc('month', at AT TIME ZONE 'UTC') + make_interval(months => number))
            AT TIME ZONE 'UTC';
        ended := (date_trunc('month', at AT TIME ZONE 'UTC') + make_interval(months => number + 1))
            AT TIME ZONE 'UTC';
        part := record_table || to_char(begun AT TIME ZONE 'UTC', '_YYYY_MM');
        IF to_regclass(part) IS NULL THEN
            -- Attached rather than created in place, which does not block readers and writers of the table.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                           part, record_table);
            PERFORM force_row_security(part::regclass);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                           record_table, part, first_id(begun), first_id(ended));
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION make_partitions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION make_partitions TO paddock_app;
