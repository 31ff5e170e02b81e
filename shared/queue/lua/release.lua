-- a: tenant, jobs [id], dry_run
-- Removes jobs that have ended, or are gone, from the open jobs of a tenant. Returns how many.

local held, leaked = P .. 'open:' .. a.tenant, 0
for _, id in ipairs(a.jobs) do
  if call('ZSCORE', held, id) and not is_open(read_job(id)) then
    leaked = leaked + 1
    if not a.dry_run then call('ZREM', held, id) end
  end
end
return leaked
