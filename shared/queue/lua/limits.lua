-- Decides whether a request may come in. Put in front of `submit` and `reserve`, whose `a` has model, class, tenant,
-- classes (best first), deadline_ms, is_urgent (refuse a request that could not begin before its deadline) and limits
-- where 0 is none: max_jobs and max_bytes that wait, concurrency, rate (requests per second) and burst of the tenant,
-- and budget {key, tokens (the most in a period), starts_ms (when periods begin, some before and after now)}, or nil.
-- Counts are those below the prefix that the script is run with: of the only shard, or of the whole fleet.

-- A budget stays so long after its period: jobs that came in it may still run.
local BUDGET_KEPT_MS = 7 * DAY_MS

local depth, held, busy = P .. 'depth:' .. a.model, P .. 'open:' .. a.tenant, P .. 'busy:' .. a.model

local function refused(reason, seconds, number, limit, requested)
  local retry_ms = seconds and math.floor(1000 * math.max(0.001, math.min(seconds, 3600))) or 0
  return { 'refused', reason, retry_ms, math.floor(number), math.floor(limit), math.floor(requested or 0) }
end

-- Returns the tokens left in the tenant's bucket once this request has taken one. Below zero there is none to take.
local function left_in_bucket()
  local left, at = unpack(call('HMGET', P .. 'bucket:' .. a.tenant, 'left', 'at_ms'))
  local elapsed_s = math.max(0, now - tonumber(at or now)) / 1000
  return math.min(a.burst, tonumber(left or a.burst) + elapsed_s * a.rate) - 1
end

-- Returns whether jobs have waited all the time that the rates are measured over. Only then the rates tell what the
-- workers can do, and not how much work there was for them.
local function is_saturated(waits)
  local since = call('GET', busy)
  return waits > 0 and since and now - tonumber(since) > now % BUCKET_MS + BUCKET_MS
end

local function all_waiting()
  local sum = 0
  for _, class in ipairs(a.classes) do sum = sum + tonumber(call('HGET', depth, 'jobs:' .. class) or 0) end
  return sum
end

-- Returns the cost that waits in this class and better ones.
local function cost_ahead()
  local sum = 0
  for _, class in ipairs(a.classes) do
    sum = sum + tonumber(call('HGET', depth, 'cost:' .. class) or 0)
    if class == a.class then break end
  end
  return sum
end

-- Returns the key of the budget of the period that is now, and when that period ends.
local function budget_now()
  local starts_ms = a.budget.starts_ms
  local i = 1
  while starts_ms[i + 2] and now >= starts_ms[i + 1] do i = i + 1 end
  return P .. 'budget:' .. a.budget.key .. ':' .. starts_ms[i], starts_ms[i + 1]
end

-- Returns the answer that refuses a request; nil where there is room for `count` jobs of so many bytes, which may use
-- so many tokens.
local function refusal(count, bytes, tokens)
  if a.budget then
    local budget, ends_ms = budget_now()
    local used, reserved = unpack(call('HMGET', budget, 'used', 'reserved'))
    local taken = tonumber(used or 0) + tonumber(reserved or 0)
    if taken + tokens > a.budget.tokens then
      return { 'refused', 'budget', ends_ms - now, taken, a.budget.tokens, tokens }
    end
  end
  local cost_rate, job_rate = rates(a.model)
  if a.concurrency > 0 then
    local open = call('ZCARD', held)
    local over = open + count - a.concurrency
    if over > 0 then return refused('concurrency', job_rate and over / job_rate, open, a.concurrency, count) end
  end
  if a.rate > 0 then
    local left = left_in_bucket()
    if left < 0 then return refused('rate', -left / a.rate, a.rate, a.burst) end
  end
  local waiting = tonumber(call('HGET', depth, 'jobs:' .. a.class) or 0)
  local over = waiting + count - a.max_jobs
  if over > 0 then return refused('depth', job_rate and over / job_rate, waiting, a.max_jobs, count) end
  local held_bytes = tonumber(call('HGET', depth, 'bytes') or 0)
  if a.max_bytes > 0 and held_bytes + bytes > a.max_bytes then
    return refused('bytes', job_rate and 1 / job_rate, held_bytes, a.max_bytes, bytes)
  end
  if a.is_urgent and cost_rate and is_saturated(all_waiting()) then
    local wait_ms = 1000 * cost_ahead() / cost_rate
    if wait_ms > a.deadline_ms then
      return refused('deadline', (wait_ms - a.deadline_ms) / 1000, wait_ms, a.deadline_ms)
    end
  end
end

local function add_depth(count, cost, bytes)
  call('HINCRBY', depth, 'jobs:' .. a.class, count)
  call('HINCRBY', depth, 'cost:' .. a.class, cost)
  call('HINCRBY', depth, 'bytes', bytes)
end

-- Reserves for each job the most tokens that it may use.
local function reserve_budget()
  local budget, ends_ms = budget_now()
  for _, job in ipairs(a.jobs) do
    call('HSET', P .. 'budgeted', job.id, cmsgpack.pack({ budget = budget, tokens = job.tokens, at_ms = now }))
    call('HINCRBY', budget, 'reserved', job.tokens)
  end
  call('PEXPIRE', budget, ends_ms - now + BUDGET_KEPT_MS)
end

-- Lets a request in that was not refused.
local function enter(count, cost, bytes)
  if a.budget then reserve_budget() end
  if a.rate > 0 then
    local bucket, left = P .. 'bucket:' .. a.tenant, left_in_bucket()
    call('HSET', bucket, 'left', tostring(left), 'at_ms', now)
    call('PEXPIRE', bucket, math.ceil(1000 * a.burst / a.rate) + 1000)
  end
  if all_waiting() == 0 or call('EXISTS', busy) == 0 then call('SET', busy, now, 'PX', SERVED_TTL_MS) end
  add_depth(count, cost, bytes)
end
