-- Keeps a run in a room in one step, so that it is never seen twice, and drops the oldest of what is too many.
-- KEYS: the runs of the room, their order, and both of the room of runs that go on if it has to leave that
-- ARGV: the name of the run in the room, the run, when it ended, how many the room has, and the id of the run
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
for _, old in ipairs(redis.call('ZRANGE', KEYS[2], 0, -tonumber(ARGV[4]) - 1)) do
  redis.call('ZREM', KEYS[2], old)
  redis.call('HDEL', KEYS[1], old)
end
if KEYS[3] then
  redis.call('HDEL', KEYS[3], ARGV[5])
  redis.call('ZREM', KEYS[4], ARGV[5])
end
