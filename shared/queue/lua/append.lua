-- a: ttl_ms, publish, skipped (the last event of a needless job, if any append settles), appends [[id, epoch, after,
--    events, prompt (its tokens, if the events have a start), advance (0: none, 1: progressed, 2: sampled a token), state
--    ('' or the terminal one), used (as in `count_usage`), ms since the first of the events happened, settles (it makes
--    jobs behind it needless), surplus (tokens in the events, less the events but for a terminal one)]]
-- Appends events to the logs of many jobs. An append names its epoch, and the index that it goes behind. Returns for
-- each 1 when its events are in the log (now or by an earlier try of the same append), 0 when the writer is stale.

local CHECKED = { 'state', 'epoch', 'last', 'advanced', 'first_ms', 'readers' }

local function write(id, epoch, after, events, prompt, advance, state, used, age_ms, settles, surplus)
  local job = read_job(id, CHECKED)
  if not job or tonumber(job.epoch) ~= epoch then return 0 end
  local last = tonumber(job.last)
  -- This very append has landed before: only its answer was lost.
  if last == after + #events and (job.state == 'running' or job.state == state) then return 1 end
  if job.state ~= 'running' or last ~= after then return 0 end
  local fields = {}
  if prompt then fields = { 'started', epoch, 'prompt', prompt } end
  if advance > 0 and job.advanced ~= job.epoch then
    fields[#fields + 1] = 'advanced'
    fields[#fields + 1] = epoch
  end
  if advance == 2 and not job.first_ms then
    fields[#fields + 1] = 'first_ms'
    fields[#fields + 1] = now - age_ms
  end
  append(job, events, unpack(fields))
  -- Most events of a stream have one token, so that its tokens are counted by its events, for nothing.
  if surplus ~= 0 then call('HINCRBY', job_key(id), 'surplus', surplus) end
  if state ~= '' then finish(read_job(id), state, used, settles) end
  return 1
end

local written = {}
for i, values in ipairs(a.appends) do written[i] = write(unpack(values, 1, 11)) end
return written
