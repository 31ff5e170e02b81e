-- a: requests [id], keep_ms
-- Returns for each request that was let in 1 if it has come, else 0. Such a one may not come any more.

local came = {}
for i, id in ipairs(a.requests) do
  came[i] = call('EXISTS', P .. 'request:' .. id)
  if came[i] == 0 then call('SET', P .. 'void:' .. id, '1', 'PX', a.keep_ms) end
end
return came
