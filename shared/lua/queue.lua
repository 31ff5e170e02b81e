-- The only code that moves a job's state. One file, dispatched on ARGV[1], so that the ending of a job is written once.
-- Job hash: spec, state (queued | running | done | failed | cancelled), epoch, last (event index), entry (stream id),
-- expires_ms (a job still queued then is not run), worker. Times are milliseconds of this server's clock.
-- Event index i is the log entry `i-0`: an append lands once or not at all.

local GROUP = 'workers'
local RATE_BUCKET_MS = 10000

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function is_terminal(state)
  return state == 'done' or state == 'failed' or state == 'cancelled'
end

local function append(job, log, channel, payload)
  local index = redis.call('HINCRBY', job, 'last', 1)
  redis.call('XADD', log, index .. '-0', 'e', payload)
  redis.call('PUBLISH', channel, index .. ':' .. payload)
end

local function rate_key(queue, at_ms)
  return queue .. ':ended:' .. math.floor(at_ms / RATE_BUCKET_MS)
end

-- The terminal event is already appended. Acknowledging and deleting go together, so that the number of entries minus
-- the number of pending ones is the number of jobs that wait, to the one, whether the entry was delivered or not.
local function finish(queue, job, log, state, ttl_ms, was_running)
  local now = now_ms()
  redis.call('HSET', job, 'state', state, 'ended_ms', now)
  local entry = redis.call('HGET', job, 'entry')
  redis.pcall('XACK', queue, GROUP, entry)
  redis.call('XDEL', queue, entry)
  if was_running then
    local rate = rate_key(queue, now)
    redis.call('INCR', rate)
    redis.call('PEXPIRE', rate, 3 * RATE_BUCKET_MS)
  end
  redis.call('PEXPIRE', job, ttl_ms)
  redis.call('PEXPIRE', log, ttl_ms)
end

local function pending_count(queue)
  local summary = redis.pcall('XPENDING', queue, GROUP)
  if summary.err then
    redis.pcall('XGROUP', 'CREATE', queue, GROUP, '0', 'MKSTREAM')
    return 0
  end
  return summary[1]
end

-- KEYS: queue, job...   ARGV: max_depth, queue_timeout_ms, then (id, places, spec) for each job
-- All or nothing. Returns {1, depth before} or {0, depth, jobs ended in the last 10 to 20 s, span_ms of that count}.
local function submit()
  local queue, count = KEYS[1], #KEYS - 1
  local now = now_ms()
  local depth = redis.call('XLEN', queue) - pending_count(queue)
  if depth + count > tonumber(ARGV[2]) then
    local before = now - RATE_BUCKET_MS
    local ended = tonumber(redis.call('GET', rate_key(queue, now)) or '0')
      + tonumber(redis.call('GET', rate_key(queue, before)) or '0')
    return { 0, depth, ended, now % RATE_BUCKET_MS + RATE_BUCKET_MS }
  end
  for i = 1, count do
    local id, places, spec = ARGV[3 * i + 1], ARGV[3 * i + 2], ARGV[3 * i + 3]
    local entry = redis.call('XADD', queue, '*', 'job', id, 'places', places)
    redis.call('HSET', KEYS[i + 1], 'spec', spec, 'state', 'queued', 'epoch', 0, 'last', 0, 'entry', entry,
      'queued_ms', now, 'expires_ms', now + tonumber(ARGV[3]))
  end
  return { 1, depth }
end

-- KEYS: queue   ARGV: worker, places
-- Delivers entries one by one until they fill the places, of which the last may take more than are left.
local function fill()
  local entries, left = {}, tonumber(ARGV[3])
  while left > 0 do
    local reply = redis.call('XREADGROUP', 'GROUP', GROUP, ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
    if not reply then break end
    local entry = reply[1][2][1]
    entries[#entries + 1] = entry
    local fields = entry[2]
    local places = 1
    for i = 1, #fields, 2 do
      if fields[i] == 'places' then places = tonumber(fields[i + 1]) end
    end
    left = left - places
  end
  return entries
end

-- KEYS: queue, job, log   ARGV: entry, worker, channel, ttl_ms, payload of the queue-timeout event, most epochs, payload
-- of the too-many-epochs event. Returns {spec, epoch, last} to the new owner, or nil when there is nothing to run.
local function claim()
  local queue, job, log = KEYS[1], KEYS[2], KEYS[3]
  local state = redis.call('HGET', job, 'state')
  if not state or is_terminal(state) then
    redis.call('XACK', queue, GROUP, ARGV[2])
    redis.call('XDEL', queue, ARGV[2])
    return nil
  end
  if state == 'queued' and tonumber(redis.call('HGET', job, 'expires_ms')) < now_ms() then
    append(job, log, ARGV[4], ARGV[6])
    finish(queue, job, log, 'failed', ARGV[5], true)
    return nil
  end
  local epoch = redis.call('HINCRBY', job, 'epoch', 1)
  if epoch > tonumber(ARGV[7]) then
    append(job, log, ARGV[4], ARGV[8])
    finish(queue, job, log, 'failed', ARGV[5], true)
    return nil
  end
  redis.call('HSET', job, 'state', 'running', 'worker', ARGV[3])
  return { redis.call('HGET', job, 'spec'), epoch, tonumber(redis.call('HGET', job, 'last')) }
end

-- KEYS: queue, job, log   ARGV: epoch, last index the writer saw, channel, terminal state or '', ttl_ms, payloads...
-- Returns 1 when the payloads are in the log (now or by an earlier try of the same append), 0 when the writer is stale.
local function write()
  local queue, job, log = KEYS[1], KEYS[2], KEYS[3]
  local state, epoch, last = unpack(redis.call('HMGET', job, 'state', 'epoch', 'last'))
  local count = #ARGV - 6
  if not state or epoch ~= ARGV[2] then return 0 end
  if tonumber(last) == tonumber(ARGV[3]) + count and (state == 'running' or state == ARGV[5]) then return 1 end
  if state ~= 'running' or last ~= ARGV[3] then return 0 end
  for i = 7, #ARGV do append(job, log, ARGV[4], ARGV[i]) end
  if ARGV[5] ~= '' then finish(queue, job, log, ARGV[5], ARGV[6], true) end
  return 1
end

-- KEYS: queue, job, log   ARGV: channel, terminal state, ttl_ms, payload, '1' to spare a job that is running
-- Ends a job from outside. The epoch moves on, so that its worker is stale at its next append. Returns 1 if it ended.
local function end_job()
  local queue, job, log = KEYS[1], KEYS[2], KEYS[3]
  local state = redis.call('HGET', job, 'state')
  if not state or is_terminal(state) or (state == 'running' and ARGV[6] == '1') then return 0 end
  append(job, log, ARGV[2], ARGV[5])
  redis.call('HINCRBY', job, 'epoch', 1)
  finish(queue, job, log, ARGV[3], ARGV[4], state == 'running')
  return 1
end

-- KEYS: queue, job   ARGV: epoch, worker, idle_ms
-- The owner of the epoch restarts its lease (idle 0) or gives it up (a large idle). Returns 1, or 0 when stale.
local function renew()
  local queue, job = KEYS[1], KEYS[2]
  local state, epoch, entry = unpack(redis.call('HMGET', job, 'state', 'epoch', 'entry'))
  if state ~= 'running' or epoch ~= ARGV[2] then return 0 end
  redis.call('XCLAIM', queue, GROUP, ARGV[3], 0, entry, 'IDLE', ARGV[4], 'JUSTID')
  return 1
end

-- KEYS: queue   ARGV: worker
-- Removes a worker from the group, unless entries are still in its name: deleting it would take them along.
local function forget()
  local mine = redis.pcall('XPENDING', KEYS[1], GROUP, '-', '+', 1, ARGV[2])
  if mine.err or #mine > 0 then return 0 end
  return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], GROUP, ARGV[2])
end

local commands = {
  submit = submit, fill = fill, claim = claim, write = write, end_job = end_job, renew = renew,
  forget = forget,
}
return commands[ARGV[1]]()
