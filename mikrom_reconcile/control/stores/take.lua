-- Takes a lease in one step, so that no token is given twice. Answers the token, or the holder of the lease.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  local token = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, tonumber(ARGV[3]))
  redis.call('SET', KEYS[2], string.format('%d', token))
  return token
end
return redis.call('GET', KEYS[1])
