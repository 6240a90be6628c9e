-- Extends the leases of one worker, which may hold rows of many tenants. A row is named by its id and its fencing
-- token `attempt`. Only leases that end before `stale` are written. Returns all rows that are still held.
CREATE OR REPLACE FUNCTION extend_leases(
    lane text, ids uuid[], attempts integer[], until timestamptz, stale timestamptz
) RETURNS SETOF uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$ BEGIN
    IF lane IN ('run', 'llm') THEN
        UPDATE executions e SET lease_expires_at = until
        FROM (SELECT x.id FROM executions x JOIN unnest(ids, attempts) AS h(id, attempt)
              ON x.id = h.id AND x.attempt = h.attempt
              WHERE x.status IN ('preparing', 'running') AND x.lease_expires_at < stale
              ORDER BY x.id FOR UPDATE OF x) AS held
        WHERE e.id = held.id;
        RETURN QUERY SELECT e.id FROM executions e JOIN unnest(ids, attempts) AS h(id, attempt)
        ON e.id = h.id AND e.attempt = h.attempt WHERE e.status IN ('preparing', 'running');
    ELSE
        UPDATE agent_versions v SET lease_expires_at = until
        FROM (SELECT x.id FROM agent_versions x JOIN unnest(ids, attempts) AS h(id, attempt)
              ON x.id = h.id AND x.attempt = h.attempt
              WHERE x.status = 'building' AND x.lease_expires_at < stale
              ORDER BY x.id FOR UPDATE OF x) AS held
        WHERE v.id = held.id;
        RETURN QUERY SELECT v.id FROM agent_versions v JOIN unnest(ids, attempts) AS h(id, attempt)
        ON v.id = h.id AND v.attempt = h.attempt WHERE v.status = 'building';
    END IF;
END $$;
REVOKE ALL ON FUNCTION extend_leases FROM PUBLIC;
GRANT EXECUTE ON FUNCTION extend_leases TO paddock_app;
