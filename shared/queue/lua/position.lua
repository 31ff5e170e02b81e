-- a: jobs [id] of one request, classes (best first)
-- Estimates the position of the first of them that waits. Returns {jobs that come before it, ms until a worker takes it
-- (-1: no job has ended lately to estimate it by)}, or {} when none waits.
--
-- The jobs before it are counted among those that wait now: all of better classes and none of worse ones. In its own
-- class they are the jobs of its tenant before it, and as many of each other tenant as have their turn before its own,
-- if all jobs of the class cost the same. Ageing changes that, and so do jobs that come, end early or cost otherwise.

local MOST_COUNTED, MOST_TENANTS = 1000, 100

local function first_waiting()
  for _, id in ipairs(a.jobs) do
    local job = read_job(id)
    if job and job.state == 'queued' then return job end
  end
end

-- Returns the number of jobs that wait in a class, and their cost.
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

-- Returns the number of jobs before this one in its line. A job behind the first MOST_COUNTED counts as the last one.
local function of_its_tenant(job)
  local before = #call('XRANGE', line_key(job), '-', '(' .. job.entry, 'COUNT', MOST_COUNTED)
  return before < MOST_COUNTED and before or call('XLEN', line_key(job)) - 1
end

-- Returns the number of jobs of other tenants whose turn comes before the virtual time `at`. Tenants beyond the first
-- MOST_TENANTS count with one job each.
local function of_others(job, at, mean_cost)
  local turns, sum = class_key('turns', job.model, job.class), 0
  local others = call('ZRANGEBYSCORE', turns, '-inf', at, 'WITHSCORES', 'LIMIT', 0, MOST_TENANTS)
  for i = 1, #others, 2 do
    local tenant, turn = others[i], (at - tonumber(others[i + 1])) / mean_cost
    if tenant ~= job.tenant then
      local served = math.ceil(turn)
      if served == turn and tenant < job.tenant then served = served + 1 end
      local line = line_key({ model = job.model, class = job.class, tenant = tenant })
      sum = sum + math.min(served, call('XLEN', line))
    end
  end
  return sum + call('ZCOUNT', turns, '-inf', at) - #others / 2
end

local job = first_waiting()
if not job then return {} end
local jobs, cost = in_better_classes(job)
local class_jobs, class_cost = waiting(job.model, job.class)
local mean_cost = math.max(1, class_cost) / math.max(1, class_jobs)
local of_tenant, turn = of_its_tenant(job), call('ZSCORE', class_key('turns', job.model, job.class), job.tenant)
local before = of_tenant + of_others(job, tonumber(turn) + of_tenant * mean_cost, mean_cost)
local cost_rate, job_rate = rates(job.model)
local wait_ms = job_rate and 1000 * ((cost + before * mean_cost) / cost_rate + 1 / job_rate) or -1
return { jobs + before, math.floor(wait_ms) }
