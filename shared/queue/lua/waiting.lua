-- a: shards (prefixes, all of one server), models, classes
-- Returns the indices, from 0, of the models that have a lapsed lease or a job that waits on any of these shards.
-- Changes nothing.

local function has_work(prefix, model)
  if #call('ZRANGEBYSCORE', prefix .. 'leases:' .. model, '-inf', now, 'LIMIT', 0, 1) > 0 then return true end
  local turns = {}
  for i, class in ipairs(a.classes) do turns[i] = prefix .. 'turns:' .. model .. ':' .. class end
  return call('EXISTS', unpack(turns)) > 0
end

local with_work = {}
for i, model in ipairs(a.models) do
  for _, prefix in ipairs(a.shards) do
    if has_work(prefix, model) then
      with_work[#with_work + 1] = i - 1
      break
    end
  end
end
return with_work
