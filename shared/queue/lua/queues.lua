-- a: models, classes
-- Returns the state of the queues of these models: {number of convicted jobs that are kept, {jobs in workers' hands,
-- bytes that wait, {jobs, cost, ms since the oldest came}...}...}, for each model, for each class. Where more than
-- MOST_TENANTS tenants wait in a class, the oldest job is that of the tenants whose turns come last.

local MOST_TENANTS = 256

local function oldest_ms(model, class)
  local oldest = 0
  for _, tenant in ipairs(call('ZRANGE', class_key('turns', model, class), 0, MOST_TENANTS - 1, 'REV')) do
    local entry = call('XRANGE', line_key({ model = model, class = class, tenant = tenant }), '-', '+', 'COUNT', 1)[1]
    if entry then oldest = math.max(oldest, now - tonumber(string.match(entry[1], '^%d+'))) end
  end
  return oldest
end

local answer = { call('XLEN', P .. 'dead') }
for _, model in ipairs(a.models) do
  local depth = P .. 'depth:' .. model
  local queue = { call('ZCARD', P .. 'leases:' .. model), tonumber(call('HGET', depth, 'bytes') or 0) }
  for _, class in ipairs(a.classes) do
    local jobs, cost = unpack(call('HMGET', depth, 'jobs:' .. class, 'cost:' .. class))
    queue[#queue + 1] = { tonumber(jobs or 0), tonumber(cost or 0), oldest_ms(model, class) }
  end
  answer[#answer + 1] = queue
end
return answer
