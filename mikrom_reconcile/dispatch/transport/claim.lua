-- KEYS: a heartbeat, the machine of its host, the machines that were given up under that name
-- ARGV: start id, how long it lives (0: only asks), this machine with and without its boot, the name of its node
-- Sets the keys. The answer is why not: another start id, another machine, or given up.
local held, bound = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if held and not string.find(held, '-' .. ARGV[3] .. '-', 1, true) then return {'held', held} end
for _, machine in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  if machine == ARGV[4] or machine == '?' then return {'given up', machine} end
end
if bound and string.match(bound, '^%S+') ~= ARGV[4] then return {'bound', bound} end
redis.call('SET', KEYS[2], ARGV[4] .. ' ' .. ARGV[5])
if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return false
