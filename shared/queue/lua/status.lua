-- a: jobs [id], expired, late (events), grace_ms, ttl_ms, publish
-- Tells how the jobs of a request stand. A job that waits too long ends here if nobody else has ended it, as does one
-- that runs `grace_ms` longer than its deadline. Returns for each {state, last event index, ms left to be taken, ms left
-- to the deadline, fingerprint of the worker that took it last, and when it was queued, first taken, said its first token
-- and ended}, or {''} for one that is gone; nil for what has not happened.

local function stand(id)
  local job = read_job(id)
  if not job then return { '' } end
  local queue_ms, deadline_ms = tonumber(job.expires_ms) - now, tonumber(job.deadline_ms) - now
  local event = deadline_ms < 0 and a.late or a.expired
  if (job.state == 'queued' and math.min(queue_ms, deadline_ms) < 0)
    or (job.state == 'running' and deadline_ms + a.grace_ms < 0) then
    append(job, { event })
    call('HINCRBY', job_key(id), 'epoch', 1)
    if job.worker then call(a.publish, P .. 'worker:' .. job.worker, id) end
    finish(job, 'failed')
  end
  local times = call('HMGET', job_key(id), 'queued_ms', 'taken_ms', 'first_ms', 'ended_ms')
  return { job.state, tonumber(job.last), queue_ms, deadline_ms, job.fingerprint, unpack(times) }
end

local snapshots = {}
for i, id in ipairs(a.jobs) do snapshots[i] = stand(id) end
return snapshots
