-- Behind `limits.lua`, with the prefix of all shards' admission. a: request (its id), jobs [{id, cost, tokens, bytes}],
--    model, class, tenant, classes, deadline_ms, is_urgent, limits, and confirmed (requests that are queued by now).
-- Lets a request in, before its jobs are queued on their shard. Returns {'reserved'} (now or by an earlier try), or
-- {'refused', reason, retry_ms, number, limit, requested}: `number` of `limit` are taken, and this takes `requested`.

for _, id in ipairs(a.confirmed) do
  call('ZREM', P .. 'unconfirmed', id)
  call('HDEL', P .. 'entrants', id)
end
if call('ZSCORE', held, a.jobs[1].id) then return { 'reserved' } end

local count, cost, bytes, tokens = #a.jobs, 0, 0, 0
for _, job in ipairs(a.jobs) do
  cost, bytes, tokens = cost + job.cost, bytes + job.bytes, tokens + job.tokens
end
local obstacle = refusal(count, bytes, tokens)
if obstacle then return obstacle end
enter(count, cost, bytes)
local ids = {}
for i, job in ipairs(a.jobs) do
  ids[i] = job.id
  local reservation = { model = a.model, class = a.class, cost = job.cost, bytes = job.bytes, at_ms = now }
  call('HSET', P .. 'reserved', job.id, cmsgpack.pack(reservation))
  call('ZADD', P .. 'waiting:' .. a.model, now, job.id)
  call('ZADD', held, now, job.id)
end
call('ZADD', P .. 'unconfirmed', now, a.request)
call('HSET', P .. 'entrants', a.request, cmsgpack.pack({ tenant = a.tenant, jobs = ids }))
return { 'reserved' }
