-- Deletes versions of the bound tenant that are older than `before` and serve no purpose: not active, not the newest
-- of their agent (numbers are not given out twice), not being built, not in `used` (the ids that plans name), and
-- without executions. A deleted agent has no active and no newest version. Their objects are swept later. Returns how
-- many were deleted.
CREATE OR REPLACE FUNCTION forget_versions(before timestamptz, used uuid[], most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    tenant text := current_setting('paddock.tenant_id');
    gone integer;
BEGIN
    DELETE FROM agent_versions d WHERE d.id IN (
        SELECT v.id FROM agent_versions v JOIN agents a ON a.id = v.agent_id
        WHERE v.tenant_id = tenant AND v.created_at < before AND v.updated_at < before
          AND v.status IN ('ready', 'failed') AND v.id <> ALL (used)
          AND (a.deleted_at < before OR (
              a.deleted_at IS NULL AND a.current_version_id IS DISTINCT FROM v.id AND EXISTS (
                  SELECT FROM agent_versions n WHERE n.agent_id = a.id AND n.number > v.number)))
          AND NOT EXISTS (SELECT FROM executions e WHERE e.agent_version_id = v.id)
        ORDER BY v.created_at LIMIT most FOR UPDATE OF v, a SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;
REVOKE ALL ON FUNCTION forget_versions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_versions TO paddock_app;
