-- a: artifacts [id], tenant (whose artifacts they must be; '': whose time must be over)
-- Discards those artifacts, and gives back what they take of the quota.
-- Returns for each: 0 it was not there, 1 it lay in Redis, 2 its file is to be removed.

local discarded = {}
for i, id in ipairs(a.artifacts) do
  local owner = call('HGET', artifact_key(id), 'tenant')
  local may_discard
  if a.tenant == '' then may_discard = not lives(id) else may_discard = owner == a.tenant end
  discarded[i] = 0
  if may_discard then
    local has_file = discard(id)
    if owner then discarded[i] = has_file and 2 or 1 end
  end
end
return discarded
