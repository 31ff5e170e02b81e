-- a: model, jobs [{id, epoch}], lease_ms (0: give the jobs back, so that others take them at once)
-- Returns for each job 1, or 0 when it is no longer the caller's.

local leases = P .. 'leases:' .. a.model
local held = {}
for i, claim in ipairs(a.jobs) do
  local state, epoch = unpack(call('HMGET', job_key(claim.id), 'state', 'epoch'))
  local is_ours = state == 'running' and tonumber(epoch) == claim.epoch
  held[i] = is_ours and 1 or 0
  if is_ours then call('ZADD', leases, 'XX', a.lease_ms > 0 and now + a.lease_ms or 0, claim.id) end
end
if a.lease_ms == 0 then ring(a.model, #a.jobs) end
return held
