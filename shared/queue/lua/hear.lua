-- a: job, reader, after
-- Tells a reader of the events of a job from now on. Returns whether the job is there, and its log behind index `after`.

local job = read_job(a.job, { 'state', 'readers' })
if is_open(job) then
  local readers = job.readers or ''
  if not string.find(readers, a.reader, 1, true) then
    call('HSET', job_key(a.job), 'readers', readers .. ' ' .. a.reader)
  end
end
return { job and 1 or 0, call('XRANGE', log_key(a.job), '(' .. a.after .. '-0', '+') }
