-- a: request {id, key, body, record, follower}, model, class, tenant, classes (best first), jobs [{id, places, cost, spec}],
--    queue_ms, deadline_ms (both from now), is_urgent (refuse what could not begin before its deadline), ttl_ms, and
--    limits where 0 is none: max_jobs and max_bytes that wait, concurrency, rate (requests per second) and burst of the
--    tenant.
-- All jobs of a request are queued, or none is. Returns {'queued'} (now or by an earlier try), {'known', request id} for
-- an idempotency key that came before with the same body, {'conflict'} for one with another body, or {'refused', reason,
-- retry_ms, number, limit}.

local function refused(reason, seconds, number, limit)
  local retry_ms = seconds and math.floor(1000 * math.max(0.001, math.min(seconds, 3600))) or 0
  return { 'refused', reason, retry_ms, math.floor(number), math.floor(limit) }
end

-- The tokens left in the tenant's bucket once this request has taken one; below zero it may not.
local function drawn()
  local bucket = P .. 'bucket:' .. a.tenant
  local left, at = unpack(call('HMGET', bucket, 'left', 'at_ms'))
  local elapsed_s = math.max(0, now - tonumber(at or now)) / 1000
  return bucket, math.min(a.burst, tonumber(left or a.burst) + elapsed_s * a.rate) - 1
end

-- Whether jobs have waited all the time that the rates are measured over: only then are they what the workers can do, and
-- not what was asked of them.
local function is_saturated(waits)
  local since = call('GET', P .. 'busy:' .. a.model)
  return waits > 0 and since and now - tonumber(since) > now % BUCKET_MS + BUCKET_MS
end

local function all_waiting(depth)
  local sum = 0
  for _, class in ipairs(a.classes) do sum = sum + tonumber(call('HGET', depth, 'jobs:' .. class) or 0) end
  return sum
end

-- Cost that waits in this class and better ones.
local function cost_ahead(depth)
  local sum = 0
  for _, class in ipairs(a.classes) do
    sum = sum + tonumber(call('HGET', depth, 'cost:' .. class) or 0)
    if class == a.class then break end
  end
  return sum
end

if call('EXISTS', P .. 'request:' .. a.request.id) == 1 then return { 'queued' } end
local known = a.request.key ~= '' and P .. 'key:' .. a.tenant .. ':' .. a.request.key
if known then
  local body, request = unpack(call('HMGET', known, 'body', 'request'))
  if body then
    return body == a.request.body and { 'known', request } or { 'conflict' }
  end
end

local count, cost, bytes = #a.jobs, 0, 0
for _, job in ipairs(a.jobs) do
  cost, bytes = cost + job.cost, bytes + #job.spec
end
local depth, held = P .. 'depth:' .. a.model, P .. 'held:' .. a.tenant
local cost_rate, job_rate = rates(a.model)

if a.concurrency > 0 then
  local open = call('ZCARD', held)
  if open + count > a.concurrency then
    return refused('concurrency', job_rate and (open + count - a.concurrency) / job_rate, open, a.concurrency)
  end
end
local bucket, left
if a.rate > 0 then
  bucket, left = drawn()
  if left < 0 then return refused('rate', -left / a.rate, a.rate, a.burst) end
end
local waiting = tonumber(call('HGET', depth, 'jobs:' .. a.class) or 0)
if waiting + count > a.max_jobs then
  return refused('depth', job_rate and (waiting + count - a.max_jobs) / job_rate, waiting, a.max_jobs)
end
local held_bytes = tonumber(call('HGET', depth, 'bytes') or 0)
if a.max_bytes > 0 and held_bytes + bytes > a.max_bytes then
  return refused('bytes', job_rate and 1 / job_rate, held_bytes, a.max_bytes)
end
local waits = all_waiting(depth)
if a.is_urgent and cost_rate and is_saturated(waits) then
  local wait_ms = 1000 * cost_ahead(depth) / cost_rate
  if wait_ms > a.deadline_ms then
    return refused('deadline', (wait_ms - a.deadline_ms) / 1000, wait_ms, a.deadline_ms)
  end
end

local busy = P .. 'busy:' .. a.model
if waits == 0 or call('EXISTS', busy) == 0 then call('SET', busy, now, 'PX', SERVED_TTL_MS) end
if bucket then
  call('HSET', bucket, 'left', tostring(left), 'at_ms', now)
  call('PEXPIRE', bucket, math.ceil(1000 * a.burst / a.rate) + 1000)
end
if known then
  call('HSET', known, 'body', a.request.body, 'request', a.request.id)
  call('PEXPIRE', known, a.request.key_ttl_ms)
end
local ids = {}
local job = { model = a.model, class = a.class, tenant = a.tenant }
local line, served = line_key(job), class_key('served', a.model, a.class)
for i, item in ipairs(a.jobs) do
  ids[i] = item.id
  local entry = call('XADD', line, '*', 'job', item.id)
  call('HSET', job_key(item.id), 'spec', item.spec, 'model', a.model, 'class', a.class, 'tenant', a.tenant,
    'state', 'queued', 'epoch', 0, 'last', 0, 'cost', item.cost, 'places', item.places, 'bytes', #item.spec, 'entry', entry, 'deaths', 0,
    'queued_ms', now, 'expires_ms', now + a.queue_ms, 'deadline_ms', now + a.deadline_ms, 'request', a.request.id)
  call('ZADD', held, now, item.id)
end
call('HINCRBY', depth, 'jobs:' .. a.class, count)
call('HINCRBY', depth, 'cost:' .. a.class, cost)
call('HINCRBY', depth, 'bytes', bytes)
-- Who has nothing waiting starts at the class's own virtual time: a rest earns no advantage.
local turns = class_key('turns', a.model, a.class)
if not call('ZSCORE', turns, a.tenant) then
  local own, clock = unpack(call('HMGET', served, a.tenant, '*'))
  local at = math.max(tonumber(own or 0), tonumber(clock or 0))
  call('HSET', served, a.tenant, at)
  call('ZADD', turns, at, a.tenant)
end
local request, follower = P .. 'request:' .. a.request.id, a.request.follower
call('HSET', request, 'tenant', a.tenant, 'jobs', table.concat(ids, ' '), 'record', a.request.record)
if follower ~= '' then call('HSET', request, 'follower:' .. follower, now) end
call('PEXPIRE', request, a.deadline_ms + a.ttl_ms)
ring(a.model, math.min(count, MOST_RINGS))
return { 'queued' }
