-- a: requests [id], keep_ms
-- Whether requests that were let in have come: 1 for each that has. Any other may not come any more.

local came = {}
for i, id in ipairs(a.requests) do
  came[i] = call('EXISTS', P .. 'request:' .. id)
  if came[i] == 0 then call('SET', P .. 'void:' .. id, '1', 'PX', a.keep_ms) end
end
return came
