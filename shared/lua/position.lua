-- a: jobs [id] of one request, classes (best first)
-- Where the first of them that waits stands. Returns {jobs that come before it, ms until a worker takes it (-1: nothing
-- has ended lately to tell by)}, or {} when none waits.
--
-- Foretold from what waits now: all of better classes and none of worse ones; of its own class the jobs of its tenant
-- before it, and as many of each other tenant as have their turn before its own, if jobs of the class cost the same.
-- Ageing, and what comes, ends early or costs otherwise, change that.

local MOST_COUNTED, MOST_TENANTS = 1000, 100

local function first_waiting()
  for _, id in ipairs(a.jobs) do
    local job = read_job(id)
    if job and job.state == 'queued' then return job end
  end
end

-- Jobs that wait in a class, and their cost.
local function waiting(model, class)
  local jobs, cost = unpack(call('HMGET', P .. 'depth:' .. model, 'jobs:' .. class, 'cost:' .. class))
  return tonumber(jobs or 0), tonumber(cost or 0)
end

local function in_better_classes(job)
  local jobs, cost = 0, 0
  for _, class in ipairs(a.classes) do
    if class == job.class then break end
    local more_jobs, more_cost = waiting(job.model, class)
    jobs, cost = jobs + more_jobs, cost + more_cost
  end
  return jobs, cost
end

-- What is further back in a long line than is counted is told as the line's end.
local function of_its_tenant(job)
  local found = #call('XRANGE', line_key(job), '-', '(' .. job.entry, 'COUNT', MOST_COUNTED)
  return found < MOST_COUNTED and found or call('XLEN', line_key(job)) - 1
end

-- Jobs of other tenants whose turn comes before the virtual time `at`. Of more tenants than are looked at, one job each.
local function of_others(job, at, mean_cost)
  local turns, sum = class_key('turns', job.model, job.class), 0
  local found = call('ZRANGEBYSCORE', turns, '-inf', at, 'WITHSCORES', 'LIMIT', 0, MOST_TENANTS)
  for i = 1, #found, 2 do
    local tenant, turn = found[i], (at - tonumber(found[i + 1])) / mean_cost
    if tenant ~= job.tenant then
      local served = math.ceil(turn)
      if served == turn and tenant < job.tenant then served = served + 1 end
      local line = line_key({ model = job.model, class = job.class, tenant = tenant })
      sum = sum + math.min(served, call('XLEN', line))
    end
  end
  return sum + call('ZCOUNT', turns, '-inf', at) - #found / 2
end

local job = first_waiting()
if not job then return {} end
local jobs, cost = in_better_classes(job)
local class_jobs, class_cost = waiting(job.model, job.class)
local mean_cost = math.max(1, class_cost) / math.max(1, class_jobs)
local own, turn = of_its_tenant(job), call('ZSCORE', class_key('turns', job.model, job.class), job.tenant)
local before = own + of_others(job, tonumber(turn) + own * mean_cost, mean_cost)
local cost_rate, job_rate = rates(job.model)
local wait_ms = job_rate and 1000 * ((cost + before * mean_cost) / cost_rate + 1 / job_rate) or -1
return { jobs + before, math.floor(wait_ms) }
