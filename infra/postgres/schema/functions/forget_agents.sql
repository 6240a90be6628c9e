-- Deletes agents of the bound tenant that were marked as deleted before `before` and that no other row refers to.
-- `used` holds the ids that plans name. Returns how many were deleted.
CREATE OR REPLACE FUNCTION forget_agents(before timestamptz, used uuid[], most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    tenant text := current_setting('paddock.tenant_id');
    gone integer;
BEGIN
    DELETE FROM agents d WHERE d.id IN (
        SELECT a.id FROM agents a
        WHERE a.tenant_id = tenant AND a.deleted_at < before AND a.id <> ALL (used)
          AND NOT EXISTS (SELECT FROM agent_versions v WHERE v.agent_id = a.id)
          AND NOT EXISTS (SELECT FROM executions e WHERE e.agent_id = a.id)
          AND NOT EXISTS (SELECT FROM agents c WHERE c.parent_id = a.id)
        ORDER BY a.id LIMIT most FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;
REVOKE ALL ON FUNCTION forget_agents FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_agents TO paddock_app;
