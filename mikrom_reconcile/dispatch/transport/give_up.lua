-- KEYS: the machine of a host, the machines that were given up under its name. Takes the name from its machine.
local bound = redis.call('GET', KEYS[1])
if bound or redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SADD', KEYS[2], bound and string.match(bound, '^%S+') or '?')
end
return redis.call('DEL', KEYS[1])
