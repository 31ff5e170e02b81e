-- a: ttl_ms, publish, appends [{id, epoch, after, events, state ('' or the terminal one), has_begun, has_advanced, cost}]
-- Appends the news of many jobs. An append names its epoch and the index it goes behind. Returns for each 1 when its
-- events are in the log (now or by an earlier try of the same append), 0 when the writer is stale.

local function write(item)
  local job = read_job(item.id)
  if not job or tonumber(job.epoch) ~= item.epoch then return 0 end
  local last = tonumber(job.last)
  if last == item.after + #item.events and (job.state == 'running' or job.state == item.state) then return 1 end
  if job.state ~= 'running' or last ~= item.after then return 0 end
  append(job, item.events)
  if item.has_begun then call('HSET', job_key(item.id), 'started', item.epoch) end
  if item.has_advanced then call('HSET', job_key(item.id), 'advanced', item.epoch) end
  if item.state ~= '' then finish(job, item.state, item.cost) end
  return 1
end

local written = {}
for i, item in ipairs(a.appends) do written[i] = write(item) end
return written
