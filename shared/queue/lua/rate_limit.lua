-- a: who, mark (of this call, so that repeating it counts once), limits [{name, times, window_ms}]
-- Counts one call against all limits, if each has room: fewer than `times` calls in the `window_ms` before now.
-- Returns {0, 0}, or {number of the limit without room that lasts longest, milliseconds until it has some}.

local function key_of(limit) return P .. 'rate:' .. a.who .. ':' .. limit.name end

local full, wait_ms = 0, 0
for i, limit in ipairs(a.limits) do
  local calls = key_of(limit)
  if call('ZSCORE', calls, a.mark) then return { 0, 0 } end
  call('ZREMRANGEBYSCORE', calls, '-inf', now - limit.window_ms)
  local count = call('ZCARD', calls)
  if count >= limit.times then
    -- There is room once so few are left that one more fits, however many a larger limit has let in.
    local first = tonumber(call('ZRANGE', calls, count - limit.times, count - limit.times, 'WITHSCORES')[2])
    local left_ms = first + limit.window_ms - now
    if left_ms > wait_ms then full, wait_ms = i, left_ms end
  end
end
if full > 0 then return { full, wait_ms } end
for _, limit in ipairs(a.limits) do
  call('ZADD', key_of(limit), now, a.mark)
  call('PEXPIRE', key_of(limit), limit.window_ms)
end
return { 0, 0 }
