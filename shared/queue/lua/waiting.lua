-- a: shards (prefixes, all of one server), models, classes (best first)
-- Returns {index, class} of the models that have a lapsed lease or a job that waits on any of these shards. Both are
-- indices, from 0, and the class is the best one of a job that waits; a job with a lapsed lease counts as one of the best
-- class, since it was begun. Changes nothing.

-- Returns the index, from 1, of the best class of which there is work on a shard, nil if there is none.
local function best_class(prefix, model)
  if #call('ZRANGEBYSCORE', prefix .. 'leases:' .. model, '-inf', now, 'LIMIT', 0, 1) > 0 then return 1 end
  local turns = {}
  for i, class in ipairs(a.classes) do turns[i] = prefix .. 'turns:' .. model .. ':' .. class end
  -- One call for most models, which have no work.
  if call('EXISTS', unpack(turns)) == 0 then return nil end
  for i, name in ipairs(turns) do
    if call('EXISTS', name) == 1 then return i end
  end
end

local with_work = {}
for i, model in ipairs(a.models) do
  local best
  for _, prefix in ipairs(a.shards) do
    local class = best_class(prefix, model)
    if class and (not best or class < best) then best = class end
    if best == 1 then break end
  end
  if best then with_work[#with_work + 1] = { i - 1, best - 1 } end
end
return with_work
