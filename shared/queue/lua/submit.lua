-- Behind `limits.lua`. a: request {id, key, key_ttl_ms, body, record, follower_id, experiment ('' for none), api_key (id
--    of the key that it came with, '' for none)}, model, class, tenant, classes (best first), jobs [{id, slots, cost,
--    tokens (the most that it may use), spec, leader (the job behind which it is parked, '' for none)}], has_budget (the
--    key has one), has_webhook (the end of the request is to be an event), queue_ms, deadline_ms (both from now), ttl_ms, is_reserved (`reserve` has let the request in, so no
--    limit is looked at), and else the limits.
-- Queues all jobs of a request, or none. Returns {'queued'} (now or by an earlier try), {'known', request id} for an
-- idempotency key that came before with the same body, {'conflict'} for one with another body, {'void'} when the
-- reservation was given up meanwhile, or {'refused', reason, retry_ms, number, limit, requested} as in `reserve`.

-- Feedback on a request is taken so long after it came.
local FEEDBACK_MS = 24 * 3600000
-- Somebody ends every job soon after its deadline. It may be the janitor, which may be away for days.
local UNTOLD_MS = 7 * DAY_MS

if call('EXISTS', P .. 'request:' .. a.request.id) == 1 then return { 'queued' } end
local known = a.request.key ~= '' and P .. 'key:' .. a.tenant .. ':' .. a.request.key
if known then
  local body, request = unpack(call('HMGET', known, 'body', 'request'))
  if body then
    return body == a.request.body and { 'known', request } or { 'conflict' }
  end
end

local count, cost, bytes, tokens = #a.jobs, 0, 0, 0
for _, job in ipairs(a.jobs) do
  bytes, tokens = bytes + #job.spec, tokens + job.tokens
  if job.leader == '' then cost = cost + job.cost end
end
if a.is_reserved then
  if call('EXISTS', P .. 'void:' .. a.request.id) == 1 then return { 'void' } end
  add_depth(count, cost, bytes)
else
  local obstacle = refusal(count, bytes, tokens)
  if obstacle then return obstacle end
  enter(count, cost, bytes)
end
if known then
  call('HSET', known, 'body', a.request.body, 'request', a.request.id)
  call('PEXPIRE', known, a.request.key_ttl_ms)
end
local ids, led = {}, {}
for i, new_job in ipairs(a.jobs) do
  ids[i] = new_job.id
  local job = { id = new_job.id, model = a.model, class = a.class, tenant = a.tenant }
  local state, entry = 'queued', ''
  if new_job.leader == '' then
    entry = join_line(job)
  else
    state = 'parked'
    call('SADD', P .. 'parked:' .. a.model, new_job.id)
    call('HSET', job_key(new_job.id), 'leader', new_job.leader)
    led[new_job.leader] = led[new_job.leader] or {}
    table.insert(led[new_job.leader], new_job.id)
  end
  call('HSET', job_key(new_job.id), 'spec', new_job.spec, 'model', a.model, 'class', a.class, 'tenant', a.tenant,
    'state', state, 'epoch', 0, 'last', 0, 'cost', new_job.cost, 'slots', new_job.slots, 'bytes', #new_job.spec,
    'entry', entry, 'deaths', 0, 'queued_ms', now, 'expires_ms', now + a.queue_ms,
    'deadline_ms', now + a.deadline_ms, 'request', a.request.id)
  if a.request.experiment ~= '' then call('HSET', job_key(new_job.id), 'experiment', a.request.experiment) end
  if a.request.api_key ~= '' then call('HSET', job_key(new_job.id), 'api_key', a.request.api_key) end
  if a.has_budget then call('HSET', job_key(new_job.id), 'has_budget', 1) end
  if a.has_webhook then call('HSET', job_key(new_job.id), 'has_webhook', 1) end
  if i == 1 then call('HSET', job_key(new_job.id), 'is_first', 1) end
  call('ZADD', held, now, new_job.id)
end
for leader, behind in pairs(led) do call('HSET', job_key(leader), 'led', table.concat(behind, ' ')) end
if a.has_webhook then call('SET', P .. 'untold:' .. a.request.id, count, 'PX', a.deadline_ms + UNTOLD_MS) end
local request, follower_id = P .. 'request:' .. a.request.id, a.request.follower_id
call('HSET', request, 'tenant', a.tenant, 'jobs', table.concat(ids, ' '), 'record', a.request.record)
if follower_id ~= '' then call('HSET', request, 'follower:' .. follower_id, now) end
call('PEXPIRE', request, a.deadline_ms + a.ttl_ms)
if a.request.experiment ~= '' then
  -- This outlives the request: people may take hours to say what they think of an answer.
  local assigned = P .. 'assigned:' .. a.request.id
  call('HSET', assigned, 'tenant', a.tenant, 'experiment', a.request.experiment, 'arm', a.model)
  call('PEXPIRE', assigned, FEEDBACK_MS)
end
ring(a.model, math.min(count, MOST_RINGS))
-- Full workers hear no bell, and have room for these all the same.
if a.class == a.classes[1] then call(a.publish, P .. 'urgent:' .. a.model, count) end
return { 'queued' }
