-- a: events [{id, tenant, type, object, at_ms, endpoint ('': all that take its type; else a test of this one)}]
-- Makes a delivery of each event for each endpoint, once. Returns those that are not over.

local function takes(id, event)
  local types, status = unpack(call('HMGET', endpoint_key(id), 'types', 'status'))
  if not types then return false end
  if event.endpoint ~= '' then return event.endpoint == id end
  return status == 'enabled' and string.find(' ' .. types .. ' ', ' ' .. event.type .. ' ', 1, true) ~= nil
end

local names = {}
for _, event in ipairs(a.events) do
  for _, id in ipairs(call('ZRANGE', P .. 'owned:' .. event.tenant, 0, -1)) do
    local name = event.id .. ':' .. id
    if takes(id, event) and call('EXISTS', delivery_key(name)) == 0 then
      call('HSET', delivery_key(name), 'event', event.id, 'endpoint', id, 'type', event.type, 'object', event.object,
        'at_ms', event.at_ms, 'tries', 0, 'is_test', event.endpoint ~= '' and 1 or 0)
      call('ZADD', pending, event.at_ms, name)
      call('ZADD', due, now, name)
    end
    if call('ZSCORE', pending, name) then names[#names + 1] = name end
  end
end
return names
