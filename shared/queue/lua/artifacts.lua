-- Shared by `store` and `discard`: the keys of an artifact, and how it is removed.

local expiring, loose = P .. 'expiring', P .. 'loose'
local used, in_redis = P .. 'used', P .. 'in_redis'

local function artifact_key(id) return P .. 'artifact:' .. id end
local function bytes_key(id) return P .. 'bytes:' .. id end
local function owned_key(tenant) return P .. 'owned:' .. tenant end
local function digest_key(tenant, digest) return P .. 'digest:' .. tenant .. ':' .. digest end

local function count_used(tenant, num_bytes)
  if call('HINCRBY', used, tenant, num_bytes) <= 0 then call('HDEL', used, tenant) end
end

-- Returns whether an artifact is there whose time is not over.
local function lives(id)
  local expires_ms = call('HGET', artifact_key(id), 'expires_ms')
  return expires_ms and tonumber(expires_ms) > now
end

-- Removes an artifact: its record, its bytes in Redis, and what it takes of the quota. Its file, if it
-- has one, is loose from now on, until a process has removed it. Returns whether it has one.
local function discard(id)
  local tenant, digest, charged, num_bytes, is_file =
    unpack(call('HMGET', artifact_key(id), 'tenant', 'digest', 'charge', 'num_bytes', 'is_file'))
  call('ZREM', expiring, id)
  if not tenant then return false end
  call('DEL', artifact_key(id))
  call('ZREM', owned_key(tenant), id)
  if call('GET', digest_key(tenant, digest)) == id then call('DEL', digest_key(tenant, digest)) end
  count_used(tenant, -tonumber(charged))
  if is_file == '1' then
    call('ZADD', loose, now, id)
    return true
  end
  if call('DEL', bytes_key(id)) == 1 then call('DECRBY', in_redis, num_bytes) end
  return false
end
