-- a: name, tries (before this attempt), outcome (delivered | gone | failed), status (of HTTP, 0 for none), error (''
--    for none), took_ms, next_ms (from now; -1: this was the last attempt), failing_ms (an endpoint for which each attempt
--    has failed for so long is disabled)
-- Notes an attempt once. Returns {1 if another attempt follows, why the endpoint was disabled just now or ''}.

local MOST_ATTEMPTS = 200
local ATTEMPTS_TTL_MS = 30 * DAY_MS

local delivery = delivery_key(a.name)
local is_pending = call('ZSCORE', pending, a.name)
local event, id, kind, tries, is_test = unpack(call('HMGET', delivery, 'event', 'endpoint', 'type', 'tries', 'is_test'))
if not is_pending or tonumber(tries) ~= a.tries then return { is_pending and 1 or 0, '' } end
call('HINCRBY', delivery, 'tries', 1)

local endpoint, reason = endpoint_key(id), ''
if call('EXISTS', endpoint) == 0 then
  end_delivery(a.name)
  return { 0, '' }
end
if is_test == '0' then
  if a.outcome == 'delivered' then
    call('HDEL', endpoint, 'failing_ms')
  elseif a.outcome == 'gone' then
    reason = 'gone'
  else
    call('HSETNX', endpoint, 'failing_ms', now)
    if now - tonumber(call('HGET', endpoint, 'failing_ms')) >= a.failing_ms then reason = 'failing' end
  end
  if reason ~= '' then call('HSET', endpoint, 'status', 'disabled', 'reason', reason) end
end

local goes_on = a.outcome == 'failed' and a.next_ms >= 0 and reason == ''
if goes_on then
  call('ZADD', due, now + a.next_ms, a.name)
else
  end_delivery(a.name)
end
local attempts = P .. 'attempts:' .. id
call('XADD', attempts, 'MAXLEN', '~', MOST_ATTEMPTS, '*', 'event', event, 'type', kind, 'attempt', a.tries + 1, 'outcome',
  a.outcome, 'status', a.status, 'error', a.error, 'took_ms', a.took_ms, 'next_ms', goes_on and now + a.next_ms or 0)
call('PEXPIRE', attempts, ATTEMPTS_TTL_MS)
return { goes_on and 1 or 0, reason }
