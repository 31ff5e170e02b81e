-- a: files [id], grace_ms, dry_run
-- Lists those files as loose that have neither a record nor a place in that list, so that they are removed when
-- `grace_ms` are over. Returns how many. A file is listed before it is created, and leaves the list in the step that
-- writes its record, so none that is in use is taken for unknown.

local num_unknown = 0
for _, id in ipairs(a.files) do
  if call('EXISTS', artifact_key(id)) == 0 and not call('ZSCORE', loose, id) then
    num_unknown = num_unknown + 1
    if not a.dry_run then call('ZADD', loose, now + a.grace_ms, id) end
  end
end
return num_unknown
