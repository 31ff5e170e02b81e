-- With the prefix of all shards' admission. a: left [{id, tenant, model, cost, at_ms}], confirmed, voided [request id],
--    unconfirmed_ms
-- Gives back what jobs took that have left their lines (`tenant` is not '' for those that have ended; `model` is not ''
-- for those that ran before) and what requests took that never came. All is given back once, however often it is told.
-- Returns the requests that have been unconfirmed for so long that their fronts may be dead, 100 at most.

local MOST_UNCONFIRMED = 100

-- Gives back what a job took. Returns that, nil where it has come back before.
local function leave(id)
  local takes = call('HGET', P .. 'reserved', id)
  if not takes then return nil end
  call('HDEL', P .. 'reserved', id)
  takes = cmsgpack.unpack(takes)
  call('ZREM', P .. 'waiting:' .. takes.model, id)
  local depth = P .. 'depth:' .. takes.model
  call('HINCRBY', depth, 'jobs:' .. takes.class, -1)
  call('HINCRBY', depth, 'cost:' .. takes.class, -takes.cost)
  call('HINCRBY', depth, 'bytes', -takes.bytes)
  return takes
end

-- Sets since when jobs of a model wait without a moment in which none did, now that it is known until when some have
-- waited: from now backwards, as long as their stays follow on one another. Stays before the last time this was asked
-- were known then, and are in `busy` already.
local function restart_clock(model, stays)
  local oldest = call('ZRANGE', P .. 'waiting:' .. model, 0, 0, 'WITHSCORES')[2]
  local since = tonumber(oldest or now)
  table.sort(stays, function(one, other) return one.to_ms > other.to_ms end)
  for _, stay in ipairs(stays) do
    if stay.to_ms < since then break end
    since = math.min(since, stay.from_ms)
  end
  local asked = P .. 'settled:' .. model
  if since > tonumber(call('GET', asked) or 0) then call('SET', P .. 'busy:' .. model, since, 'PX', SERVED_TTL_MS) end
  call('SET', asked, now, 'PX', SERVED_TTL_MS)
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

-- Gives back what a request took that never came, its tenant's rate included.
local function void(request)
  local entrant = call('HGET', P .. 'entrants', request)
  if not entrant then return end
  entrant = cmsgpack.unpack(entrant)
  for _, id in ipairs(entrant.jobs) do
    leave(id)
    call('ZREM', P .. 'open:' .. entrant.tenant, id)
  end
  local bucket = P .. 'bucket:' .. entrant.tenant
  local left = call('HGET', bucket, 'left')
  if left then call('HSET', bucket, 'left', tostring(tonumber(left) + 1)) end
  forget(request)
end

local stays = {}
for _, job in ipairs(a.left) do
  local id, tenant, model, cost, at_ms = unpack(job)
  local takes = leave(id)
  if takes then
    stays[takes.model] = stays[takes.model] or {}
    table.insert(stays[takes.model], { from_ms = takes.at_ms, to_ms = at_ms })
  end
  local has_ended = tenant ~= '' and call('ZREM', P .. 'open:' .. tenant, id) == 1
  if has_ended and model ~= '' then count_ended(model, cost, at_ms) end
end
for model, its_stays in pairs(stays) do restart_clock(model, its_stays) end
for _, request in ipairs(a.confirmed) do forget(request) end
for _, request in ipairs(a.voided) do void(request) end
return call('ZRANGEBYSCORE', P .. 'unconfirmed', '-inf', now - a.unconfirmed_ms, 'LIMIT', 0, MOST_UNCONFIRMED)
