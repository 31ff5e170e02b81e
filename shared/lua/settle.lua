-- With the prefix of all shards' admission. a: left [{id, tenant, model, cost, at_ms}], confirmed, voided [request id],
--    unconfirmed_ms
-- Gives back what jobs took that have left their lines (`tenant` is not '' for those that have ended; `model` is not ''
-- for those that had run) and what requests took that never came; each is given back once, however often it is told.
-- Returns the requests that have been unconfirmed for so long that their fronts may be dead, 100 at most.

local MOST_UNCONFIRMED = 100

local function leave(id)
  local takes = call('HGET', P .. 'reserved', id)
  if not takes then return end
  call('HDEL', P .. 'reserved', id)
  takes = cmsgpack.unpack(takes)
  local depth = P .. 'depth:' .. takes.model
  call('HINCRBY', depth, 'jobs:' .. takes.class, -1)
  call('HINCRBY', depth, 'cost:' .. takes.class, -takes.cost)
  call('HINCRBY', depth, 'bytes', -takes.bytes)
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

-- What it took of its tenant's rate comes back, too.
local function void(request)
  local entrant = call('HGET', P .. 'entrants', request)
  if not entrant then return end
  entrant = cmsgpack.unpack(entrant)
  for _, id in ipairs(entrant.jobs) do
    leave(id)
    call('ZREM', P .. 'held:' .. entrant.tenant, id)
  end
  local bucket = P .. 'bucket:' .. entrant.tenant
  local left = call('HGET', bucket, 'left')
  if left then call('HSET', bucket, 'left', tostring(tonumber(left) + 1)) end
  forget(request)
end

for _, job in ipairs(a.left) do
  local id, tenant, model, cost, at_ms = unpack(job)
  leave(id)
  local has_ended = tenant ~= '' and call('ZREM', P .. 'held:' .. tenant, id) == 1
  if has_ended and model ~= '' then count_ended(model, cost, at_ms) end
end
for _, request in ipairs(a.confirmed) do forget(request) end
for _, request in ipairs(a.voided) do void(request) end
return call('ZRANGEBYSCORE', P .. 'unconfirmed', '-inf', now - a.unconfirmed_ms, 'LIMIT', 0, MOST_UNCONFIRMED)
