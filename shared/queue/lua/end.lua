-- a: jobs [id], state, event, ttl_ms, publish, if_waiting (spare those that run, and those that are or were parked, whose
--    time in line begins later), request and follower_id (this follower of the request has left: spare all jobs if it
--    has others; '' for request: end them anyway)
-- Ends jobs from outside. The epoch grows, so that the worker of a job is stale at its next append. The worker is told
-- as well. Returns for each job 1 if it ended now.

local function is_followed()
  if a.request == '' then return false end
  local request = P .. 'request:' .. a.request
  call('HDEL', request, 'follower:' .. a.follower_id)
  for _, field in ipairs(call('HKEYS', request)) do
    if string.find(field, '^follower:') then return true end
  end
  return false
end

local function end_job(id)
  local job = read_job(id)
  if not is_open(job) or (a.if_waiting and (job.state == 'running' or job.leader)) then return 0 end
  append(job, { a.event })
  call('HINCRBY', job_key(id), 'epoch', 1)
  if job.worker then call(a.publish, P .. 'worker:' .. job.worker, id) end
  finish(job, a.state)
  return 1
end

local ended, spared = {}, is_followed()
for i, id in ipairs(a.jobs) do ended[i] = spared and 0 or end_job(id) end
return ended
