-- Deletes up to `most` rows of any tenant that serve no purpose since `before`. `what` names the kind of row; see
-- `domain.retention`. Returns how many were deleted.
CREATE OR REPLACE FUNCTION forget_expired(what text, before timestamptz, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    gone integer;
BEGIN
    CASE what
    WHEN 'answers' THEN
        DELETE FROM idempotency_keys d WHERE d.ctid = ANY (ARRAY (
            SELECT k.ctid FROM idempotency_keys k WHERE k.created_at < before LIMIT most
            FOR UPDATE SKIP LOCKED));
    WHEN 'refresh_tokens' THEN
        DELETE FROM refresh_tokens d WHERE d.token_hash IN (
            SELECT r.token_hash FROM refresh_tokens r WHERE r.expires_at < before LIMIT most
            FOR UPDATE SKIP LOCKED);
    WHEN 'sessions' THEN
        DELETE FROM sessions d WHERE d.id IN (
            SELECT s.id FROM sessions s WHERE s.created_at < before AND NOT EXISTS (
                SELECT FROM refresh_tokens r WHERE r.session_id = s.id AND r.expires_at >= before)
            LIMIT most FOR UPDATE SKIP LOCKED);
    WHEN 'invites' THEN
        DELETE FROM invites d WHERE d.id IN (
            SELECT i.id FROM invites i WHERE i.expires_at < before LIMIT most FOR UPDATE SKIP LOCKED);
    WHEN 'holds' THEN
        DELETE FROM cost_holds d WHERE d.id IN (
            SELECT h.id FROM cost_holds h WHERE h.until < before LIMIT most FOR UPDATE SKIP LOCKED);
    WHEN 'schedule_runs' THEN
        DELETE FROM schedule_runs d WHERE d.ctid = ANY (ARRAY (
            SELECT r.ctid FROM schedule_runs r WHERE r.due_at < before AND r.outcome <> 'queued' LIMIT most
            FOR UPDATE SKIP LOCKED));
    WHEN 'bulk_operations' THEN
        WITH old AS (
            SELECT o.id FROM bulk_operations o WHERE o.completed_at < before LIMIT most FOR UPDATE SKIP LOCKED
        ), items AS (DELETE FROM bulk_items i USING old WHERE i.operation_id = old.id RETURNING i.operation_id)
        DELETE FROM bulk_operations d WHERE d.id IN (SELECT old.id FROM old) AND (SELECT count(*) FROM items) >= 0;
    WHEN 'trace_exports' THEN
        -- Only if nobody has asked for an export since.
        DELETE FROM trace_exports d WHERE d.execution_id IN (
            SELECT x.execution_id FROM trace_exports x
            WHERE NOT EXISTS (SELECT FROM trace_export w WHERE w.wanted_at >= before)
            LIMIT most FOR UPDATE SKIP LOCKED);
    WHEN 'files' THEN
        -- Their bytes are swept with other objects that no row refers to.
        DELETE FROM files d WHERE d.id IN (
            SELECT f.id FROM files f WHERE f.expires_at < before LIMIT most FOR UPDATE SKIP LOCKED);
    WHEN 'workers' THEN
        DELETE FROM workers d WHERE d.id IN (
            SELECT w.id FROM workers w WHERE w.seen_at < before LIMIT most FOR UPDATE SKIP LOCKED);
    ELSE
        RAISE EXCEPTION 'nothing expires as %', what;
    END CASE;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;
REVOKE ALL ON FUNCTION forget_expired FROM PUBLIC;
GRANT EXECUTE ON FUNCTION forget_expired TO paddock_app;
