-- a: who, call_id (so that repeating the script counts the call once), limits [{name, times, window_ms}]
-- Counts one call against all limits, if each has room: fewer than `times` calls in the `window_ms` before now.
-- Returns {0, 0}, or {number of the limit that is full the longest, ms until it has room}.

local function key_of(limit) return P .. 'rate:' .. a.who .. ':' .. limit.name end

local full, wait_ms = 0, 0
for i, limit in ipairs(a.limits) do
  local calls = key_of(limit)
  if call('ZSCORE', calls, a.call_id) then return { 0, 0 } end
  call('ZREMRANGEBYSCORE', calls, '-inf', now - limit.window_ms)
  local count = call('ZCARD', calls)
  if count >= limit.times then
    -- There is room once this earlier call has left the window: then it has one call fewer than `times`. There may be
    -- more than `times` in it, where the limit was larger before.
    local first = tonumber(call('ZRANGE', calls, count - limit.times, count - limit.times, 'WITHSCORES')[2])
    local left_ms = first + limit.window_ms - now
    if left_ms > wait_ms then full, wait_ms = i, left_ms end
  end
end
if full > 0 then return { full, wait_ms } end
for _, limit in ipairs(a.limits) do
  call('ZADD', key_of(limit), now, a.call_id)
  call('PEXPIRE', key_of(limit), limit.window_ms)
end
return { 0, 0 }
