-- a: jobs {model: number of jobs}, half_life_ms, source, number
-- Adds jobs to the popularity of models, which is {jobs a ms, the time of this value, half_life_ms} as text in a hash: an
-- average over the past, in which jobs count the less the longer ago they were. `number` is that of the addition by its
-- source; the last one of a source is added once, however often it comes. Returns 1, or 0 if it had come before.

local SOURCE_TTL_MS = 3600000

local popularity, counted = P .. 'popularity', P .. 'counted:' .. a.source
if tonumber(call('GET', counted) or 0) >= a.number then return 0 end
call('SET', counted, a.number, 'PX', SOURCE_TTL_MS)

local rate = math.log(2) / a.half_life_ms
for model, jobs in pairs(a.jobs) do
  local per_ms, at_ms = string.match(call('HGET', popularity, model) or '0 0 0', '^(%S+) (%S+)')
  per_ms = tonumber(per_ms) * math.exp(-rate * math.max(0, now - tonumber(at_ms))) + rate * jobs
  call('HSET', popularity, model, string.format('%.9g %.0f %.0f', per_ms, now, a.half_life_ms))
end
return 1
