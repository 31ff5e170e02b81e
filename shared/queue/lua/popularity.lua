-- a: jobs {model: number of jobs}, half_life_ms
-- Adds jobs to the popularity of models, which is {jobs a ms, the time of this value, half_life_ms} as text in a hash: an
-- average over the past, in which jobs count the less the longer ago they were. Repeating a call counts its jobs again,
-- which an average bears.

local popularity = P .. 'popularity'
local rate = math.log(2) / a.half_life_ms

for model, jobs in pairs(a.jobs) do
  local per_ms, at_ms = string.match(call('HGET', popularity, model) or '0 0 0', '^(%S+) (%S+)')
  per_ms = tonumber(per_ms) * math.exp(-rate * math.max(0, now - tonumber(at_ms))) + rate * jobs
  call('HSET', popularity, model, string.format('%.9g %.0f %.0f', per_ms, now, a.half_life_ms))
end
return 0
