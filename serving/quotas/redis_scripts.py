"""What Redis does for quotas: one script a step, each of which nobody comes between.

Every key begins with KEYS[1], which holds a hash tag, so that a cluster keeps them together. Counts are
strings: of a user's day, a project's month, a requester's minute; what is held of user, project and
requester; and the leases, by the moment at which they are over, on Redis's own clock. `built` is there as
long as the counts hold what was used before; without it nothing is reserved. A step that is said twice,
because its answer was lost, is done once.
"""

from __future__ import annotations

_COMMON = """
local P = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function take(key, amount)
  if redis.call('DECRBY', key, amount) <= 0 then redis.call('DEL', key) end
end
local function give_back(id)
  local held = redis.call('HGET', P .. 'leases', id)
  if not held then return end
  local lease = cjson.decode(held)
  take(P .. 'held:user:' .. lease[1], lease[4])
  take(P .. 'held:project:' .. lease[2], lease[4])
  take(P .. 'open:' .. lease[3], 1)
  take(P .. 'held', lease[4])
  redis.call('HDEL', P .. 'leases', id)
  redis.call('ZREM', P .. 'ends', id)
end
local function sweep()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ends', '-inf', now, 'LIMIT', 0, 200)) do
    give_back(id)
  end
end
local function counts(user, project, who, day, month, minute)
  local found = redis.call('MGET',
    P .. 'user:' .. day .. ':' .. user, P .. 'held:user:' .. user,
    P .. 'project:' .. month .. ':' .. project, P .. 'held:project:' .. project,
    P .. 'minute:' .. minute .. ':' .. who, P .. 'open:' .. who)
  for number = 1, 6 do found[number] = tonumber(found[number] or 0) end
  return found
end
local function count(who, minute)
  local key = P .. 'minute:' .. minute .. ':' .. who
  redis.call('INCR', key)
  redis.call('EXPIRE', key, 120)
end
"""

# ARGV: id, user, project, requester, day, month, minute, most tokens, the four limits, lease in milliseconds.
# Returns whether it is held, and the counts before; nothing when what was used before is not counted.
RESERVE = (
    _COMMON
    + """
if redis.call('EXISTS', P .. 'built') == 0 then return {} end
sweep()
local found = counts(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
local most = tonumber(ARGV[8])
if redis.call('HEXISTS', P .. 'leases', ARGV[1]) == 1 then return {1, found} end
count(ARGV[4], ARGV[7])
if found[1] + found[2] + most > tonumber(ARGV[9]) or found[3] + found[4] + most > tonumber(ARGV[10])
    or found[5] >= tonumber(ARGV[11]) or found[6] >= tonumber(ARGV[12]) then
  return {0, found}
end
redis.call('INCRBY', P .. 'held:user:' .. ARGV[2], ARGV[8])
redis.call('INCRBY', P .. 'held:project:' .. ARGV[3], ARGV[8])
redis.call('INCRBY', P .. 'held', ARGV[8])
redis.call('INCR', P .. 'open:' .. ARGV[4])
redis.call('HSET', P .. 'leases', ARGV[1], cjson.encode({ARGV[2], ARGV[3], ARGV[4], ARGV[8]}))
redis.call('ZADD', P .. 'ends', now + ARGV[13], ARGV[1])
return {1, found}
"""
)

# ARGV: id, user, project, day, month, tokens used, when the counts of day and of month may go (seconds
# since 1970).
SETTLE = (
    _COMMON
    + """
if not redis.call('SET', P .. 'done:' .. ARGV[1], 1, 'NX', 'EX', 120) then return 0 end
give_back(ARGV[1])
if ARGV[6] ~= '0' then
  local user = P .. 'user:' .. ARGV[4] .. ':' .. ARGV[2]
  local project = P .. 'project:' .. ARGV[5] .. ':' .. ARGV[3]
  redis.call('INCRBY', user, ARGV[6])
  redis.call('EXPIREAT', user, ARGV[7])
  redis.call('INCRBY', project, ARGV[6])
  redis.call('EXPIREAT', project, ARGV[8])
  if redis.call('EXISTS', P .. 'built') == 0 then
    redis.call('HINCRBY', P .. 'late', user, ARGV[6])
    redis.call('HINCRBY', P .. 'late', project, ARGV[6])
  end
end
return 1
"""
)

# ARGV: id, lease in milliseconds.
RENEW = (
    _COMMON
    + """
if redis.call('HEXISTS', P .. 'leases', ARGV[1]) == 1 then
  redis.call('ZADD', P .. 'ends', now + ARGV[2], ARGV[1])
end
"""
)

# ARGV: user, project, requester, day, month, minute. Returns the counts.
STANDING = (
    _COMMON
    + """
sweep()
return counts(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
"""
)

# ARGV: as for STANDING. Counts a request of the minute, and returns the counts before.
COUNT = (
    _COMMON
    + """
local found = counts(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
count(ARGV[3], ARGV[6])
return found
"""
)

# Returns the tokens held by all leases.
HELD = (
    _COMMON
    + """
sweep()
return tonumber(redis.call('GET', P .. 'held') or 0)
"""
)

# ARGV: who builds, for how many milliseconds the others wait. Returns whether they may.
BEGIN_BUILDING = """
local P = KEYS[1]
if redis.call('EXISTS', P .. 'built') == 1 then return 0 end
if not redis.call('SET', P .. 'building', ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
redis.call('DEL', P .. 'late')
return 1
"""

# ARGV: expiry (seconds since 1970), then name and tokens, again and again; the names without the prefix.
# What was settled since the building began may be among what was read, or not: it counts on top.
ABSORB = """
local P = KEYS[1]
for place = 2, #ARGV, 2 do
  local key = P .. ARGV[place]
  local used = tonumber(ARGV[place + 1]) + tonumber(redis.call('HGET', P .. 'late', key) or 0)
  if used > tonumber(redis.call('GET', key) or 0) then
    redis.call('SET', key, string.format('%.0f', used))
    redis.call('EXPIREAT', key, ARGV[1])
  end
end
"""

# ARGV: who builds, for how many milliseconds what was counted holds; 0: for ever. Returns whether it does.
END_BUILDING = """
local P = KEYS[1]
if redis.call('GET', P .. 'building') ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('SET', P .. 'built', ARGV[1])
else
  redis.call('SET', P .. 'built', ARGV[1], 'PX', ARGV[2])
end
redis.call('DEL', P .. 'building', P .. 'late')
return 1
"""
