-- Shared by the scripts, and put in front of each. The scripts alone change the state of a job.
--
-- KEYS[1] is the prefix of a shard, `aios:{00}:`; every other key begins with it and so lies in the same hash slot.
-- ARGV[1] is a msgpack map, `a` below. Times are milliseconds of this server's clock, costs are tokens.
--
-- job:ID      hash    spec model class tenant state (parked | queued | running | done | failed | cancelled) epoch last
--                     (event index) cost slots entry queued_ms expires_ms (to be taken by then) deadline_ms worker
--                     fingerprint started (last epoch that logged a start) advanced (last epoch that sampled a token or
--                     progressed) deaths taken_ms (first take) first_ms (first token) ended_ms readers (who hears of its
--                     events) leader (the job behind which it is parked) led (jobs that are parked behind it)
--                     experiment (of which its model is an arm) prompt (tokens of its prompt, once it has started)
--                     surplus (tokens in its log, less its events but for the last) api_key (id of the key that it came
--                     with) is_first (of its request's jobs) has_budget (its key has one) has_webhook (the end of its
--                     request is an event)
-- log:ID      stream  the events; event index i is the entry `i-0`, so an append lands once or not at all
-- line:M:C:T  stream  jobs of one model, class and tenant that wait
-- parked:M    set     jobs that are in no line until another one has ended
-- turns:M:C   zset    tenants that wait, by virtual time: cost served so far
-- served:M:C  hash    virtual times of all tenants, and the class's own, `*`
-- leases:M    zset    jobs in workers' hands, by when their leases end
-- depth:M     hash    `jobs:C` and `cost:C` that wait in a class, and `bytes` that wait in all
-- busy:M      string  since when jobs have waited, without a moment in which none did
-- ended:M:B   hash    jobs and cost ended in bucket B of time
-- bell:M      list    rings when there is something to take
-- open:T      zset    a tenant's jobs that have not ended, by when they came
-- bucket:T    hash    the tokens that were left in a tenant's bucket, and when
-- request:ID  hash    the jobs of one request, its tenant, the front's record of it, and `follower:F` for each
--                     follower: the last one may end the request by leaving
-- key:T:K     hash    the request that came with idempotency key K, and its body's hash
-- repeat:T:D  string  the tenant's last request whose contents have digest D
-- rate:W:N    zset    the calls of a key W against its limit N, by when they came
-- assigned:ID hash    the tenant, experiment and arm of a request, and the entry of its feedback
-- outcomes:E  stream  the jobs of an experiment that have ended, and how
-- feedback:E  stream  what callers say of its requests: one entry for each request
-- usage:D:T:K:M hash  what jobs that ended on day D (since 1970) have used: those of model M that came with API key K of
--                     tenant T
-- usage_rows:D:T set  `K:M` of each such hash of a tenant
-- usage_tenants:D set the tenants that have such a set
-- budget:K:S  hash    `used` and `reserved` tokens of API key K in the period that begins at S
-- budgeted    hash    open jobs that count against a budget: what is reserved for each, and in which budget
-- isolating:M string  the worker that empties itself for a job that is suspected
-- dead        stream  jobs that were convicted
-- untold:ID   string  how many jobs are not done yet of a request whose end is to be an event for webhooks
-- outbox      stream  events that webhooks are not told of yet
-- unsettled   stream  where there are several shards: jobs that wait no more, or have ended, and are not settled yet
-- void:ID     string  a request that never came although it had been let in; it may not come any more
-- and channels: worker:W with ids of jobs that are no longer W's, urgent:M with numbers of jobs of the best class as
-- they are queued, and `aios:mail:R` with events of all jobs that R reads, as they are logged
--
-- Several shards share one more hash tag, `{admission}`. The limits of the whole fleet are counted under it: depth,
-- busy, ended, open, bucket, budget and budgeted as above, and
-- reserved     hash   jobs that were let in and are not known to have left their line, and what each takes there
-- waiting:M    zset   the same jobs of one model, by when they were let in
-- settled:M    string when jobs of one model were settled last
-- unconfirmed  zset   requests that were let in and are not known to be queued, by when they were let in
-- entrants     hash   the tenant and jobs of each of those
--
-- Under the hash tag `{presence}` a script writes only
-- popularity   hash   how much each model is asked for
-- counted:S    string the number of the last addition of a source S to that
--
-- Under the hash tag `{artifacts}` lie the records of artifacts, and the bytes of small ones:
-- artifact:ID  hash   tenant digest media_type name purpose num_bytes charge is_file created_ms
--                     expires_ms
-- bytes:ID     string the bytes, unless they lie in a file
-- digest:T:D   string the tenant's artifact whose bytes have digest D
-- owned:T      zset   a tenant's artifacts, by when they came
-- expiring     zset   all artifacts, by when their time is over
-- used         hash   what each tenant's artifacts take of its quota
-- in_redis     string bytes of all artifacts that lie in Redis
-- loose        zset   files without a record: until when they may get one, and are not to be removed
-- key:T:K      string the digest of the contents that came with idempotency key K
--
-- Under the hash tag `{batches}`:
-- batch:ID      hash  tenant spec status ending (the status that it is to end in) epoch (how often it was claimed)
--                     created_ms expires_ms at:STATUS total completed failed prompt_tokens completion_tokens
--                     cached_tokens next_line next_offset (the first line that is in no part, and where it begins)
--                     output_parts error_parts output_file error_file errors
-- results:ID    hash  the answers of lines that are in no part yet
-- duplicates:ID set   lines whose custom_id an earlier line has
-- active        zset  batches that have not ended, by when somebody may claim them
-- owned:T       zset  a tenant's batches, by when they came
-- open:T        set   those of them that have not ended
-- unattended    hash  batches whose time was over while nobody advanced them: `EPOCH TIME`, and since when
-- outbox        stream as in a shard
--
-- Under the hash tag `{evaluations}` the same for evaluations, whose lines are requests (plan, report, error are theirs):
-- latest        string the one that ended last with a report
--
-- Under the hash tag `{webhooks}`, with a delivery D being an event and an endpoint, `EVENT:ENDPOINT`:
-- endpoint:ID   hash  tenant name url types status (enabled | disabled) reason (of the latter) secret old_secret
--                     old_until_ms (by then the old one signs too) created_ms updated_ms failing_ms (since when each
--                     attempt has failed)
-- owned:T       zset  a tenant's endpoints, by when they came
-- delivery:D    hash  event endpoint type object at_ms tries is_test
-- pending       zset  deliveries that are not over, by when their events happened
-- due           zset  the same, by when they are to be tried next
-- attempts:ID   stream attempts to deliver to an endpoint
-- outbox        stream as in a shard: events that try an endpoint

local P = KEYS[1]
local a = cmsgpack.unpack(ARGV[1])
local call = redis.call

-- Ended jobs are counted in buckets of this length, for the rates over the last one or two.
local BUCKET_MS = 10000
local MOST_RINGS = 64
-- Virtual times, `busy` and `settled` are forgotten so long after their last change.
local SERVED_TTL_MS = 3600000
-- Outcomes and feedback of an experiment are kept so long after the last of them, and about so many of each.
local EXPERIMENT_TTL_MS = 30 * 24 * 3600000
local MOST_NOTED = 100000
local DAY_MS = 86400000

local time = call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function job_key(id) return P .. 'job:' .. id end
local function log_key(id) return P .. 'log:' .. id end
local function line_key(job) return P .. 'line:' .. job.model .. ':' .. job.class .. ':' .. job.tenant end
local function class_key(kind, model, class) return P .. kind .. ':' .. model .. ':' .. class end
local function ended_key(model, at) return P .. 'ended:' .. model .. ':' .. math.floor(at / BUCKET_MS) end

local FIELDS = { 'state', 'epoch', 'last', 'model', 'class', 'tenant', 'cost', 'bytes', 'entry', 'expires_ms',
  'deadline_ms', 'worker', 'fingerprint', 'started', 'advanced', 'first_ms', 'deaths', 'request', 'readers', 'leader',
  'led', 'queued_ms', 'experiment', 'taken_ms', 'prompt', 'surplus', 'api_key', 'is_first',
  'has_budget', 'has_webhook' }

-- Returns these fields of a job, by default all that scripts need. The first must be `state`. Returns nil for a job
-- that is not there.
local function read_job(id, fields)
  fields = fields or FIELDS
  local values = call('HMGET', job_key(id), unpack(fields))
  if not values[1] then return nil end
  local job = { id = id }
  for i, field in ipairs(fields) do job[field] = values[i] end
  return job
end

local function is_open(job)
  return job ~= nil and (job.state == 'queued' or job.state == 'running' or job.state == 'parked')
end

local function ring(model, times)
  local bell = P .. 'bell:' .. model
  for _ = 1, times do call('LPUSH', bell, '1') end
  call('LTRIM', bell, 0, MOST_RINGS - 1)
end

-- Returns cost and jobs per second over the last one or two buckets; nil before anything has ended.
local function rates(model)
  local one, other = ended_key(model, now), ended_key(model, now - BUCKET_MS)
  local span_s = (now % BUCKET_MS + BUCKET_MS) / 1000
  local function per_second(field)
    local sum = tonumber(call('HGET', one, field) or 0) + tonumber(call('HGET', other, field) or 0)
    return sum > 0 and sum / span_s or nil
  end
  return per_second('cost'), per_second('jobs')
end

-- What each reader is told, which `finally.lua` sends when the script is done.
local mail = {}

-- Appends events to the log of a job and tells its readers. Further arguments are fields of the job and their new values.
local function append(job, payloads, ...)
  local log, last = log_key(job.id), tonumber(job.last)
  for _, payload in ipairs(payloads) do
    last = last + 1
    call('XADD', log, last .. '-0', 'e', payload)
    for reader in string.gmatch(job.readers or '', '%S+') do
      mail[reader] = mail[reader] or {}
      table.insert(mail[reader], job.id .. ' ' .. last .. ' ' .. #payload .. '\n' .. payload)
    end
  end
  job.last = last
  call('HSET', job_key(job.id), 'last', last, ...)
end

-- Where there are several shards, the limits are counted under `{admission}`: this notes what to settle there.
local function note_left(...)
  if a.has_many_shards then call('XADD', P .. 'unsettled', '*', ...) end
end

-- Puts a job at the end of its tenant's line. Returns the entry.
local function join_line(job)
  local entry = call('XADD', line_key(job), '*', 'job', job.id)
  -- A tenant that has nothing waiting starts at the class's own virtual time: a rest earns no advantage.
  local turns, served = class_key('turns', job.model, job.class), class_key('served', job.model, job.class)
  if not call('ZSCORE', turns, job.tenant) then
    local own_time, class_time = unpack(call('HMGET', served, job.tenant, '*'))
    local at = math.max(tonumber(own_time or 0), tonumber(class_time or 0))
    call('HSET', served, job.tenant, at)
    call('PEXPIRE', served, SERVED_TTL_MS)
    call('ZADD', turns, at, job.tenant)
  end
  return entry
end

-- Puts a parked job into its line. It may wait there as long as it might have from the start.
local function unpark(job)
  call('SREM', P .. 'parked:' .. job.model, job.id)
  call('HINCRBY', P .. 'depth:' .. job.model, 'cost:' .. job.class, job.cost)
  local expires_ms = now + tonumber(job.expires_ms) - tonumber(job.queued_ms)
  call('HSET', job_key(job.id), 'state', 'queued', 'entry', join_line(job), 'expires_ms', expires_ms)
  ring(job.model, 1)
end

-- Takes a job off its line: it is taken by a worker, or ends while it waits.
local function leave_line(job)
  local line, turns = line_key(job), class_key('turns', job.model, job.class)
  if call('XDEL', line, job.entry) == 0 then return end
  if call('XLEN', line) == 0 then
    call('DEL', line)
    call('ZREM', turns, job.tenant)
  end
  local depth = P .. 'depth:' .. job.model
  call('HINCRBY', depth, 'jobs:' .. job.class, -1)
  call('HINCRBY', depth, 'cost:' .. job.class, -tonumber(job.cost))
  call('HINCRBY', depth, 'bytes', -tonumber(job.bytes))
  note_left('job', job.id)
end

-- Moves a tenant's virtual time by the cost that it was served, and its turn with it.
local function charge(job, cost)
  local served, turns = class_key('served', job.model, job.class), class_key('turns', job.model, job.class)
  local at = call('HINCRBY', served, job.tenant, cost)
  if call('ZSCORE', turns, job.tenant) then call('ZADD', turns, at, job.tenant) end
  call('PEXPIRE', served, SERVED_TTL_MS)
end

-- A parked job counts as one that waits, but its cost does not: most such jobs are never done.
local function leave_parking(job)
  call('SREM', P .. 'parked:' .. job.model, job.id)
  local depth = P .. 'depth:' .. job.model
  call('HINCRBY', depth, 'jobs:' .. job.class, -1)
  call('HINCRBY', depth, 'bytes', -tonumber(job.bytes))
end

-- Adds an entry to a stream of an experiment. Returns the id of the entry.
local function note_of(stream, ...)
  local entry = call('XADD', stream, 'MAXLEN', '~', MOST_NOTED, '*', ...)
  call('PEXPIRE', stream, EXPERIMENT_TTL_MS)
  return entry
end

-- Notes how a job of an experiment ends. `cost` is what its tenant is charged.
local function note_outcome(job, state, cost)
  local first_ms = job.first_ms and tonumber(job.first_ms) - tonumber(job.queued_ms)
  note_of(P .. 'outcomes:' .. job.experiment, 'job', job.id, 'request', job.request, 'arm', job.model, 'state', state,
    'first_ms', first_ms or '', 'total_ms', now - tonumber(job.queued_ms), 'cost', cost)
end

-- Counts what a job has used, on the day on which it ends. `used` is what its worker tells: tokens of its prompt, those
-- of them that were cached, tokens of its answer, ACT segments, bytes of artifacts. It is nil for a job that was not
-- done: that one has used what its log has. A request is counted with the first of its jobs. Returns its tokens.
local function count_usage(job, state, used)
  if not used then
    local sampled = tonumber(job.last) - 1 + tonumber(job.surplus or 0)
    used = { tonumber(job.prompt or 0), 0, math.max(0, sampled), 0, 0 }
  end
  local prompt, cached, completion, segments, bytes = unpack(used)
  if a.usage_days > 0 then
    local day = math.floor(now / DAY_MS)
    local of_tenant, row = day .. ':' .. job.tenant, (job.api_key or '') .. ':' .. job.model
    local usage = P .. 'usage:' .. of_tenant .. ':' .. row
    local function add(counter, number)
      if number > 0 then return call('HINCRBY', usage, counter, number) end
    end

    -- What is noted for a day expires with it. So that is set once, with the first job of a row.
    if add('jobs', 1) == 1 then
      local ttl_ms = (day + 1 + a.usage_days) * DAY_MS - now
      local rows, tenants = P .. 'usage_rows:' .. of_tenant, P .. 'usage_tenants:' .. day
      call('SADD', rows, row)
      call('SADD', tenants, job.tenant)
      for _, name in ipairs({ usage, rows, tenants }) do call('PEXPIRE', name, ttl_ms) end
    end
    if state ~= 'done' then add(state .. '_jobs', 1) end
    add('requests', job.is_first and 1 or 0)
    add('prompt_tokens', prompt)
    add('cached_tokens', cached)
    add('completion_tokens', completion)
    add('act_segments', segments)
    add('artifact_bytes', bytes)
    if job.taken_ms then add('compute_ms', now - tonumber(job.taken_ms)) end
  end
  return prompt + completion
end

-- Gives back what is reserved of a budget for a job, and counts the tokens that it used. Without `tokens` nobody knows
-- its use any more: it may have used all. Returns whether anything was reserved: a job is settled once.
local function settle_budget(id, tokens)
  local packed = call('HGET', P .. 'budgeted', id)
  if not packed then return false end
  call('HDEL', P .. 'budgeted', id)
  local reservation = cmsgpack.unpack(packed)
  -- Once its period is long over the budget has expired.
  if call('EXISTS', reservation.budget) == 1 then
    call('HINCRBY', reservation.budget, 'reserved', 0 - reservation.tokens)
    call('HINCRBY', reservation.budget, 'used', tokens or reservation.tokens)
  end
  return true
end

-- Puts an event out for the webhooks of a tenant. An `object` has ended, in a way that `kind` names.
local function put_out(event, tenant, kind, object)
  call('XADD', P .. 'outbox', 'MAXLEN', '~', MOST_NOTED, '*', 'event', event, 'tenant', tenant, 'type', kind,
    'object', object, 'at_ms', now)
end

local EVENT_OF = { done = 'job.completed', failed = 'job.failed', cancelled = 'job.cancelled' }

-- Puts the end of a request out once: when all of its jobs are done, or the first one has ended otherwise.
local function tell_end(job, state)
  local untold = P .. 'untold:' .. job.request
  local left = tonumber(call('GET', untold) or 0)
  if left == 0 then return end
  if state == 'done' and left > 1 then
    call('DECRBY', untold, 1)
  else
    call('DEL', untold)
    put_out('evt_' .. job.request, job.tenant, EVENT_OF[state], job.request)
  end
end

local finish

-- Ends the jobs that a job has made needless: those parked behind it or, where it was one of those, the ones after it.
local function skip_needless(job)
  local led, is_behind = job.led, true
  if job.leader then led, is_behind = call('HGET', job_key(job.leader), 'led'), false end
  for id in string.gmatch(led or '', '%S+') do
    local other = is_behind and read_job(id)
    if other and is_open(other) then
      append(other, { a.skipped })
      call('HINCRBY', job_key(id), 'epoch', 1)
      if other.worker then call(a.publish, P .. 'worker:' .. other.worker, id) end
      -- A job that never ran says nothing of its model.
      if other.state ~= 'running' then other.experiment = false end
      finish(other, 'done')
    end
    is_behind = is_behind or id == job.id
  end
end

local function unpark_led(job)
  for id in string.gmatch(job.led or '', '%S+') do
    local other = read_job(id)
    if other and other.state == 'parked' then unpark(other) end
  end
end

-- Ends a job, whose terminal event is appended already. `used` is as in `count_usage`. A job that `settles` its
-- question makes those behind it needless; else the jobs that were parked behind it go into their lines.
finish = function(job, state, used, settles)
  local tokens = count_usage(job, state, used)
  local cost = used and tokens -- its real cost, where that is known
  if job.experiment then note_outcome(job, state, job.state == 'running' and (cost or job.cost) or 0) end
  if job.state == 'parked' then
    leave_parking(job)
    note_left('job', job.id, 'tenant', job.tenant, 'tokens', tokens)
  elseif job.state == 'queued' then
    leave_line(job)
    note_left('job', job.id, 'tenant', job.tenant, 'tokens', tokens)
  else
    note_left('job', job.id, 'tenant', job.tenant, 'model', job.model, 'cost', job.cost, 'tokens', tokens)
    call('ZREM', P .. 'leases:' .. job.model, job.id)
    if cost then charge(job, cost - tonumber(job.cost)) end
    local ended = ended_key(job.model, now)
    call('HINCRBY', ended, 'jobs', 1)
    call('HINCRBY', ended, 'cost', job.cost) -- as expected, which is also how waiting work is counted
    call('PEXPIRE', ended, 3 * BUCKET_MS)
  end
  -- Where there are several shards, the budget is settled with the note.
  if job.has_budget and not a.has_many_shards then settle_budget(job.id, tokens) end
  if job.has_webhook then tell_end(job, state) end
  call('ZREM', P .. 'open:' .. job.tenant, job.id)
  job.state = state
  call('HSET', job_key(job.id), 'state', state, 'ended_ms', now)
  call('PEXPIRE', job_key(job.id), a.ttl_ms)
  call('PEXPIRE', log_key(job.id), a.ttl_ms)
  if settles then skip_needless(job) else unpark_led(job) end
end
