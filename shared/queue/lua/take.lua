-- a: model, worker, fingerprint, slots, classes (those wanted, best first), age_ms, lease_ms, most_lapsed, is_empty
--    (the worker has nothing in hand), ttl_ms, dead_ttl_ms, most_dead, most_epochs, publish, and events to append:
--    expired, late, convicted.
-- Takes jobs for a worker: first those whose leases have lapsed, then waiting ones until they fill the slots. The last
-- one may take more slots than are left. Returns {{{spec, epoch, last, ms to its deadline, is_alone, ms since it was
-- queued}...}, whether this worker should take nothing more until it is empty, {{spec, its last worker, epochs}...} of
-- convicted jobs}.

local PAGE, MOST_SEEN = 64, 256
local DEATHS_TO_SUSPECT, DEATHS_TO_CONVICT = 2, 3

local leases = P .. 'leases:' .. a.model
local taken, left, should_empty, convicted = {}, a.slots, false, {}
local wanted = {}
for _, class in ipairs(a.classes) do wanted[class] = true end

local function fail(job, state, event)
  append(job, { event })
  finish(job, state)
end

-- Makes the job the caller's from here on, under a new epoch.
local function hand_over(job, is_alone)
  local epoch = tonumber(job.epoch) + 1
  call('HSET', job_key(job.id), 'state', 'running', 'epoch', epoch, 'worker', a.worker, 'fingerprint', a.fingerprint)
  if epoch == 1 then call('HSET', job_key(job.id), 'taken_ms', now) end
  call('ZADD', leases, now + a.lease_ms, job.id)
  local spec, slots, queued_ms = unpack(call('HMGET', job_key(job.id), 'spec', 'slots', 'queued_ms'))
  left = left - tonumber(slots)
  taken[#taken + 1] = { spec, epoch, tonumber(job.last), tonumber(job.deadline_ms) - now, is_alone and 1 or 0,
    now - tonumber(queued_ms) }
end

-- Returns how many workers in a row have died of the job. A lapsed lease is a death if its epoch had started the job. A
-- job that advanced since it was taken does not kill workers, so earlier deaths no longer count. A job that was given
-- back (its lease ends at 0) did not die.
local function deaths_of(job, lease_end)
  local deaths = tonumber(job.deaths)
  if job.advanced == job.epoch then deaths = 0 end
  if lease_end > 0 and (job.started == job.epoch or job.advanced == job.epoch) then deaths = deaths + 1 end
  return deaths
end

local function convict(job)
  fail(job, 'failed', a.convicted)
  call('XADD', P .. 'dead', 'MAXLEN', '~', a.most_dead, '*', 'job', job.id, 'model', job.model, 'tenant', job.tenant,
    'worker', job.worker, 'epochs', job.epoch)
  call('PEXPIRE', job_key(job.id), a.dead_ttl_ms)
  call('PEXPIRE', log_key(job.id), a.dead_ttl_ms)
  convicted[#convicted + 1] = { call('HGET', job_key(job.id), 'spec'), job.worker, tonumber(job.epoch) }
end

-- Returns whether a suspected job may run here, with no other beside it. Where no worker is empty, one at a time
-- empties itself for that.
local function may_isolate()
  local isolating = P .. 'isolating:' .. a.model
  local is_free = a.is_empty and #taken == 0
  if is_free or call('GET', isolating) == a.worker or call('SET', isolating, a.worker, 'NX', 'PX', 3 * a.lease_ms) then
    call('SET', isolating, a.worker, 'PX', 3 * a.lease_ms)
    should_empty = true
  end
  return is_free
end

-- Takes over one lapsed job. A job that has tokens already goes on only on a worker with the same fingerprint, so that
-- the same tokens come out. Returns whether the job is left to other workers.
local function take_over(id, lease_end)
  local job = read_job(id)
  if not is_open(job) then
    call('ZREM', leases, id)
    return false
  end
  if not wanted[job.class] then return true end
  if tonumber(job.deadline_ms) < now then
    fail(job, 'failed', a.late)
    return false
  end
  if job.first_ms and job.fingerprint ~= a.fingerprint then return true end
  local deaths = deaths_of(job, lease_end)
  if deaths >= DEATHS_TO_CONVICT or tonumber(job.epoch) >= a.most_epochs then
    convict(job)
    return false
  end
  local is_alone = deaths >= DEATHS_TO_SUSPECT
  if is_alone and not may_isolate() then return true end
  call('HSET', job_key(id), 'deaths', deaths)
  hand_over(job, is_alone)
  if is_alone then left = 0 end
  return false
end

-- Takes over the jobs that lapsed first. Where there are more than MOST_SEEN, each call looks at one part of that size,
-- by turns: so jobs that this worker may not take do not hide others for long, and a call costs no more than that.
local function take_lapsed()
  local parts = math.ceil(call('ZCOUNT', leases, '-inf', now) / MOST_SEEN)
  local at, seen = 0, 0
  if parts > 1 then at = now % parts * MOST_SEEN end
  while seen < MOST_SEEN do
    local page = call('ZRANGEBYSCORE', leases, '-inf', now, 'WITHSCORES', 'LIMIT', at, PAGE)
    if #page == 0 then return end
    for i = 1, #page, 2 do
      if left <= 0 or #taken >= a.most_lapsed then return end
      if take_over(page[i], tonumber(page[i + 1])) then at = at + 1 end
      seen = seen + 1
    end
  end
end

-- Returns the job whose turn it is in a class, nil if none waits: the first of the tenant that was served least.
local function next_of(class)
  local tenant = call('ZRANGE', class_key('turns', a.model, class), 0, 0)[1]
  if not tenant then return nil end
  local line = line_key({ model = a.model, class = class, tenant = tenant })
  local entry = call('XRANGE', line, '-', '+', 'COUNT', 1)[1]
  local waited_ms = now - tonumber(string.match(entry[1], '^%d+'))
  return { id = entry[2][2], class = class, waited_ms = waited_ms }
end

-- Returns the next job, of the best class. Each `age_ms` of waiting lifts a job by one class, so none waits for ever.
local function next_job()
  local best, best_rank
  for rank, class in ipairs(a.classes) do
    local job = next_of(class)
    local lifted = job and rank - math.floor(job.waited_ms / a.age_ms)
    if job and (not best or lifted < best_rank) then
      best, best_rank = job, lifted
    end
  end
  return best and read_job(best.id)
end

-- Sets the class's own virtual time to that of the job that it serves. A tenant that comes later starts there.
local function start_clock(job)
  local at = call('ZSCORE', class_key('turns', job.model, job.class), job.tenant)
  call('HSET', class_key('served', job.model, job.class), '*', at)
end

local function take_waiting()
  while left > 0 and not should_empty do
    local job = next_job()
    if not job then return end
    if tonumber(job.deadline_ms) < now then
      fail(job, 'failed', a.late)
    elseif tonumber(job.expires_ms) < now then
      fail(job, 'failed', a.expired)
    else
      start_clock(job)
      leave_line(job)
      charge(job, tonumber(job.cost))
      hand_over(job, false)
    end
  end
end

if left > 0 then take_lapsed() end
take_waiting()
if #taken > 0 and next_job() then ring(a.model, 1) end
return { taken, should_empty and 1 or 0, convicted }
