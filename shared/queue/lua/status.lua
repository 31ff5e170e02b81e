-- a: jobs [id], expired, late (events), grace_ms, ttl_ms, publish
-- Returns the state of the jobs of a request. A job that has waited too long ends here if nobody else has ended it, and
-- so does one that runs `grace_ms` longer than its deadline. Returns for each job {state, last event index, ms left to
-- be taken, ms left to the deadline, fingerprint of the worker that took it last, and when it was queued, first taken,
-- had its first token and ended (nil for what has not happened)}, or {''} for one that is gone.

local function snapshot(id)
  local job = read_job(id)
  if not job then return { '' } end
  local queue_ms, deadline_ms = tonumber(job.expires_ms) - now, tonumber(job.deadline_ms) - now
  local event = deadline_ms < 0 and a.late or a.expired
  if (job.state == 'queued' and math.min(queue_ms, deadline_ms) < 0)
    or ((job.state == 'running' or job.state == 'parked') and deadline_ms + a.grace_ms < 0) then
    append(job, { event })
    call('HINCRBY', job_key(id), 'epoch', 1)
    if job.worker then call(a.publish, P .. 'worker:' .. job.worker, id) end
    finish(job, 'failed')
  end
  local times = call('HMGET', job_key(id), 'queued_ms', 'taken_ms', 'first_ms', 'ended_ms')
  return { job.state, tonumber(job.last), queue_ms, deadline_ms, job.fingerprint, unpack(times) }
end

local snapshots = {}
for i, id in ipairs(a.jobs) do snapshots[i] = snapshot(id) end
return snapshots
