-- a: shards (prefixes, all of one server), model, classes (those wanted), is_thorough (all classes are)
-- Looks at several shards at once. Returns the indices, from 0, of those where there may be something to take: a lapsed
-- lease, or a job that waits. Where there is nothing of any class, the bell is removed: its rings are out of date.

local function has_work(prefix)
  if #call('ZRANGEBYSCORE', prefix .. 'leases:' .. a.model, '-inf', now, 'LIMIT', 0, 1) > 0 then return true end
  local turns = {}
  for i, class in ipairs(a.classes) do turns[i] = prefix .. 'turns:' .. a.model .. ':' .. class end
  return call('EXISTS', unpack(turns)) > 0
end

local with_work = {}
for i, prefix in ipairs(a.shards) do
  if has_work(prefix) then
    with_work[#with_work + 1] = i - 1
  elseif a.is_thorough then
    call('DEL', prefix .. 'bell:' .. a.model)
  end
end
return with_work
