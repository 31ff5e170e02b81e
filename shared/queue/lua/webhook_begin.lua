-- a: name
-- Returns what an attempt of a delivery needs: {event, endpoint, type, object, at_ms, tries before, is_test, tenant, url,
-- secret, the old secret ('' unless it still signs), now}. Returns {} for a delivery that is over, or ends here because
-- its endpoint is gone or disabled.

if not call('ZSCORE', pending, a.name) then return {} end
local event, endpoint, kind, object, at_ms, tries, is_test = unpack(
  call('HMGET', delivery_key(a.name), 'event', 'endpoint', 'type', 'object', 'at_ms', 'tries', 'is_test'))
local tenant, status, url, secret, old_secret, old_until_ms
if event then
  tenant, status, url, secret, old_secret, old_until_ms = unpack(
    call('HMGET', endpoint_key(endpoint), 'tenant', 'status', 'url', 'secret', 'old_secret', 'old_until_ms'))
end
if not tenant or (status ~= 'enabled' and is_test == '0') then
  end_delivery(a.name)
  return {}
end
if not old_secret or tonumber(old_until_ms) <= now then old_secret = '' end
return { event, endpoint, kind, object, tonumber(at_ms), tonumber(tries), tonumber(is_test), tenant, url, secret,
  old_secret, now }
