-- a: jobs [id], grace_ms, ttl_ms, dry_run, publish, and events to append: expired, late
-- Repairs jobs that no worker or front looks after. Returns for each its state before:
--   late     open past its deadline, in no worker's hands: it ends now
--   expired  waited longer than it may: it ends now
--   lost     open, but in no line and no worker's hands: the next worker may take it, and this counts as no death. So is
--            a job that is parked behind one that has ended: it goes into its line
--   lasting  has ended, but would never expire: now it does
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
  if tonumber(job.queued_ms) >= before then return 'fine' end
  if job.state == 'parked' then return is_open(read_job(job.leader)) and 'fine' or 'lost' end
  if not lease_end and not is_in_line(job) then return 'lost' end
  return 'fine'
end

local repairs = {
  late = function(job) fail(job, a.late) end,
  expired = function(job) fail(job, a.expired) end,
  lost = function(job)
    if job.state == 'parked' then return unpark(job) end
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
  if not a.dry_run then repairs[verdicts[i]](job or { id = id }) end
end
return verdicts
