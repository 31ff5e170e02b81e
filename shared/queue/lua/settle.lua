-- With the prefix of all shards' admission. a: left [{id, tenant, model, cost, tokens, at_ms}], confirmed, voided
--    [request id], unconfirmed_ms
-- Gives back the reservations of jobs that have left their lines (`tenant` is not '' for those that have ended, and
-- `tokens` are what they used; `model` is not '' for those that ran before), and of requests that never came. A
-- reservation is given back once, however often it is reported. Returns the requests that have been unconfirmed for so
-- long that their fronts may be dead, 100 at most.

local MOST_UNCONFIRMED = 100

-- Gives back the reservation of a job. Returns it, nil where it was given back before.
local function give_back(id)
  local packed = call('HGET', P .. 'reserved', id)
  if not packed then return nil end
  call('HDEL', P .. 'reserved', id)
  local reservation = cmsgpack.unpack(packed)
  call('ZREM', P .. 'waiting:' .. reservation.model, id)
  local depth = P .. 'depth:' .. reservation.model
  call('HINCRBY', depth, 'jobs:' .. reservation.class, -1)
  -- Not by a minus alone: the cost of a parked job is 0, and Redis knows no -0.
  call('HINCRBY', depth, 'cost:' .. reservation.class, 0 - reservation.cost)
  call('HINCRBY', depth, 'bytes', -reservation.bytes)
  return reservation
end

-- Sets `busy`: since when jobs of a model have waited without a moment in which none did. `stays` tell from when to
-- when jobs waited that have left. They are followed backwards from now, as long as each joins up with the next. A
-- start before the last settlement was known then, and is in `busy` already.
local function restart_clock(model, stays)
  local oldest = call('ZRANGE', P .. 'waiting:' .. model, 0, 0, 'WITHSCORES')[2]
  local since = tonumber(oldest or now)
  table.sort(stays, function(one, other) return one.to_ms > other.to_ms end)
  for _, stay in ipairs(stays) do
    if stay.to_ms < since then break end
    since = math.min(since, stay.from_ms)
  end
  local settled = P .. 'settled:' .. model
  if since > tonumber(call('GET', settled) or 0) then call('SET', P .. 'busy:' .. model, since, 'PX', SERVED_TTL_MS) end
  call('SET', settled, now, 'PX', SERVED_TTL_MS)
end

local function count_ended(model, cost, at_ms)
  local ended = ended_key(model, at_ms)
  call('HINCRBY', ended, 'jobs', 1)
  call('HINCRBY', ended, 'cost', cost)
  call('PEXPIRE', ended, 3 * BUCKET_MS)
end

local function forget(request)
  call('ZREM', P .. 'unconfirmed', request)
  call('HDEL', P .. 'entrants', request)
end

-- Gives back the reservations of a request that never came, and the token that it took of its tenant's rate.
local function void(request)
  local entrant = call('HGET', P .. 'entrants', request)
  if not entrant then return end
  entrant = cmsgpack.unpack(entrant)
  for _, id in ipairs(entrant.jobs) do
    give_back(id)
    settle_budget(id, 0)
    call('ZREM', P .. 'open:' .. entrant.tenant, id)
  end
  local bucket = P .. 'bucket:' .. entrant.tenant
  local left = call('HGET', bucket, 'left')
  if left then call('HSET', bucket, 'left', tostring(tonumber(left) + 1)) end
  forget(request)
end

local stays = {}
for _, job in ipairs(a.left) do
  local id, tenant, model, cost, tokens, at_ms = unpack(job, 1, 6)
  local reservation = give_back(id)
  if reservation then
    local model_stays = stays[reservation.model] or {}
    stays[reservation.model] = model_stays
    table.insert(model_stays, { from_ms = reservation.at_ms, to_ms = at_ms })
  end
  local has_ended = tenant ~= '' and call('ZREM', P .. 'open:' .. tenant, id) == 1
  if has_ended then settle_budget(id, tokens) end
  if has_ended and model ~= '' then count_ended(model, cost, at_ms) end
end
for model, model_stays in pairs(stays) do restart_clock(model, model_stays) end
for _, request in ipairs(a.confirmed) do forget(request) end
for _, request in ipairs(a.voided) do void(request) end
return call('ZRANGEBYSCORE', P .. 'unconfirmed', '-inf', now - a.unconfirmed_ms, 'LIMIT', 0, MOST_UNCONFIRMED)
