-- a: requests [id], keep_ms
-- Returns for each request 1 if it is queued, else 0. One that is not may not come for `keep_ms`.

local are_queued = {}
for i, id in ipairs(a.requests) do
  are_queued[i] = call('EXISTS', P .. 'request:' .. id)
  if are_queued[i] == 0 then call('SET', P .. 'void:' .. id, '1', 'PX', a.keep_ms) end
end
return are_queued
