-- Drops one partition of a record table whose month ended before `before` and which holds no row. Returns how many
-- were dropped. The table is locked before its partition, in the order that every other statement uses, and the lock
-- is not waited for: a long read would otherwise hold up everyone behind us.
CREATE OR REPLACE FUNCTION drop_empty_partition(record_table text, before timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '1s'
AS $$
DECLARE
    part text;
    empty boolean;
    begun timestamptz;
BEGIN
    IF record_table NOT IN ('evaluations', 'artifacts', 'costs') THEN
        RAISE EXCEPTION 'no record table: %', record_table;
    END IF;
    PERFORM pg_advisory_xact_lock(1885430635, 2), set_config('paddock.every_tenant', 'on', true);
    FOR part IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = record_table::regclass
          AND c.relname < record_table || to_char(before AT TIME ZONE 'UTC', '_YYYY_MM')
        ORDER BY 1
    LOOP
        begun := clock_timestamp();
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', part) INTO empty;
        -- Rows that were just deleted make this check slow until they are vacuumed: do not take the lock then.
        CONTINUE WHEN NOT empty OR clock_timestamp() - begun > interval '1 second';
        EXECUTE format('LOCK TABLE ONLY %I IN ACCESS EXCLUSIVE MODE', record_table);
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', part) INTO empty;
        IF empty THEN
            EXECUTE format('DROP TABLE %I', part);
            RETURN 1;
        END IF;
        RETURN 0;
    END LOOP;
    RETURN 0;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN 0;
END $$;
REVOKE ALL ON FUNCTION drop_empty_partition FROM PUBLIC;
GRANT EXECUTE ON FUNCTION drop_empty_partition TO paddock_app;
