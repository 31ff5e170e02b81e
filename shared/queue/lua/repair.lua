-- a: jobs [id], grace_ms, ttl_ms, dry_run, publish, and events to append: expired, late
-- Looks after jobs that nobody else does. Returns for each what it was:
--   late     open past its deadline, in no worker's hands: ended now
--   expired  waited longer than it may: ended now
--   lost     open, but in no line and no worker's hands: whoever asks next takes it, and nobody is blamed
--   lasting  over, but it would never expire: now it does
--   fine     all others

local function is_in_line(job)
  return job.state == 'queued' and #call('XRANGE', line_key(job), job.entry, job.entry) == 1
end

local function fail(job, event)
  append(job, { event })
  call('HINCRBY', job_key(job.id), 'epoch', 1)
  finish(job, 'failed')
end

local function judge(job, before)
  local lease_end = call('ZSCORE', P .. 'leases:' .. job.model, job.id)
  if lease_end and tonumber(lease_end) > now then return 'fine' end
  if tonumber(job.deadline_ms) < before then return 'late' end
  if job.state == 'queued' and tonumber(job.expires_ms) < before then return 'expired' end
  local came = tonumber(call('HGET', job_key(job.id), 'queued_ms'))
  if not lease_end and not is_in_line(job) and came < before then return 'lost' end
  return 'fine'
end

local cures = {
  late = function(job) fail(job, a.late) end,
  expired = function(job) fail(job, a.expired) end,
  lost = function(job)
    call('HSET', job_key(job.id), 'state', 'running')
    call('ZADD', P .. 'leases:' .. job.model, 0, job.id)
    ring(job.model, 1)
  end,
  lasting = function(job)
    call('PEXPIRE', job_key(job.id), a.ttl_ms)
    call('PEXPIRE', log_key(job.id), a.ttl_ms)
  end,
  fine = function() end,
}

local verdicts = {}
for i, id in ipairs(a.jobs) do
  local job = read_job(id)
  if is_open(job) then
    verdicts[i] = judge(job, now - a.grace_ms)
  else
    verdicts[i] = call('PTTL', job_key(id)) == -1 and 'lasting' or 'fine'
  end
  if not a.dry_run then cures[verdicts[i]](job or { id = id }) end
end
return verdicts
