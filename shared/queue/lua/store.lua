-- a: id, tenant, digest, media_type, name, purpose, is_label_new (the three before are for new bytes
--    alone), num_bytes, charge (bytes of the quota that it takes), quota (0: any number), bytes
--    (unless is_file), room (for the bytes of all artifacts in Redis), ttl_ms, key ('': none),
--    contents (digest of what comes with the key), key_ttl_ms
-- Reserves the tenant's quota and writes the record of an artifact. Where the tenant has an artifact
-- with the same bytes, its time begins again, and it gets this media type, name and purpose.
-- Returns {'stored', id, created_ms, expires_ms, is_file}, or why not: {'conflict'}, the key came before
-- with something else; {'quota', bytes that are taken}; {'room'}, the bytes must lie in a file;
-- {'late'}, the file took so long that it has been removed.

local key = P .. 'key:' .. a.tenant .. ':' .. a.key
if a.key ~= '' then
  local known = call('GET', key)
  if known and known ~= a.contents then return { 'conflict' } end
end

local same = digest_key(a.tenant, a.digest)
local id = call('GET', same)
if id and not lives(id) then
  discard(id)
  id = false
end

if id and id ~= a.id then
  -- The artifact is there already: the file of this upload is loose, and due to be removed.
  if a.is_file then call('ZADD', loose, now, a.id) end
elseif not id then
  id = a.id
  local taken = tonumber(call('HGET', used, a.tenant) or 0)
  if a.quota > 0 and taken + a.charge > a.quota then return { 'quota', taken } end
  if a.is_file then
    local until_ms = call('ZSCORE', loose, id)
    if not until_ms or tonumber(until_ms) <= now then return { 'late' } end
    call('ZREM', loose, id)
  else
    if tonumber(call('GET', in_redis) or 0) + a.num_bytes > a.room then return { 'room' } end
    call('SET', bytes_key(id), a.bytes)
    call('INCRBY', in_redis, a.num_bytes)
  end
  count_used(a.tenant, a.charge)
  call('SET', same, id)
  call('ZADD', owned_key(a.tenant), now, id)
  call('HSET', artifact_key(id), 'tenant', a.tenant, 'digest', a.digest, 'num_bytes', a.num_bytes,
    'charge', a.charge, 'is_file', a.is_file and 1 or 0, 'created_ms', now)
end

local created_ms, before_ms, is_file =
  unpack(call('HMGET', artifact_key(id), 'created_ms', 'expires_ms', 'is_file'))
local expires_ms = math.max(now + a.ttl_ms, tonumber(before_ms or 0))
if not before_ms or not a.is_label_new then
  call('HSET', artifact_key(id), 'media_type', a.media_type, 'name', a.name, 'purpose', a.purpose)
end
call('HSET', artifact_key(id), 'expires_ms', expires_ms)
call('ZADD', expiring, expires_ms, id)
if a.key ~= '' then call('SET', key, a.contents, 'PX', a.key_ttl_ms) end
return { 'stored', id, tonumber(created_ms), expires_ms, tonumber(is_file) }
