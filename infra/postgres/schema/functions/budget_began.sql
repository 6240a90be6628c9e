-- Returns when the period of a budget began that contains `at`. Same rule as `domain.costs.budgets`.
CREATE OR REPLACE FUNCTION budget_began(period text, at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
AS $$
    SELECT CASE WHEN period = 'total' THEN '2000-01-01 00:00:00+00'::timestamptz
                ELSE date_trunc(period, at, 'UTC') END
$$;
