"""The scripts that Redis runs: fences and compare-and-set. All integers are below 2^53.

A group's hash holds `epoch` (the fence), `write` (the newest write number) and `positions` (JSON).
An entity's hash holds `epoch` and `write` of the write that made it; the pair never decreases.
Answers below zero: FENCED, a newer owner is there; LOST, our fence is gone, so the data are too."""

FENCED = -1
LOST = -2

RAISE_FENCE = """
-- KEYS group; ARGV epoch. Answers {epoch there, positions}.
local old = redis.call('HMGET', KEYS[1], 'epoch', 'positions')
local there = tonumber(old[1] or '-1')
if there > tonumber(ARGV[1]) then return {old[1], false} end
if there < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'write', '0')
end
return {ARGV[1], old[2]}
"""

_FENCE = """
-- KEYS group, entities...; ARGV epoch, write, positions, ttl in ms, group, ...
local call = redis.call
local fence = call('HMGET', KEYS[1], 'epoch', 'write')
if fence[1] ~= ARGV[1] then
  if fence[1] and tonumber(fence[1]) > tonumber(ARGV[1]) then return -1 end
  return -2
end
local epoch, write, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
if write > tonumber(fence[2]) then
  call('HSET', KEYS[1], 'write', ARGV[2], 'positions', ARGV[3])
end
local done = 0
"""

WRITE = (
    _FENCE
    + """
-- ARGV 6: how many values there are of each entity; the sixth is `neighbours`
local each, at = tonumber(ARGV[6]), 7
for i = 2, #KEYS do
  local key = KEYS[i]
  local old = call('HMGET', key, 'epoch', 'write', 'deleted')
  local was = tonumber(old[1] or '-1')
  if was < epoch or (was == epoch and tonumber(old[2]) < write) then
    if old[3] then call('DEL', key) end
    call('HSET', key, 'vector', ARGV[at], 'release', ARGV[at + 1], 'time_us', ARGV[at + 2],
      'count', ARGV[at + 3], 'since', ARGV[at + 4],
      'epoch', ARGV[1], 'write', ARGV[2], 'group', ARGV[5])
    if each > 5 then call('HSET', key, 'neighbours', ARGV[at + 5]) end
    if ttl > 0 then call('PEXPIRE', key, ARGV[4]) else call('PERSIST', key) end
    done = done + 1
  end
  at = at + each
end
return done
"""
)

DELETE = (
    _FENCE
    + """
for i = 2, #KEYS do
  local key = KEYS[i]
  local old = call('HMGET', key, 'epoch', 'write')
  local was = tonumber(old[1] or '-1')
  if was < epoch or (was == epoch and tonumber(old[2]) < write) then
    call('DEL', key)
    call('HSET', key, 'deleted', '1', 'epoch', ARGV[1], 'write', ARGV[2])
    call('PEXPIRE', key, ARGV[4])
    done = done + 1
  end
end
return done
"""
)

_CURRENT = """
local there = redis.call('HMGET', KEYS[1], 'epoch', 'release', 'generation')
if there[1] and tonumber(there[1]) > tonumber(ARGV[1]) then return -1 end
"""

PUBLISH = (
    _CURRENT
    + """
-- KEYS current, encoder; ARGV epoch, then fields and values; none deletes.
redis.call('DEL', KEYS[2])
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

SET_CURRENT = (
    _CURRENT
    + """
-- KEYS current, releases; ARGV epoch, release, generation, dim, dtype, kind, entries kept.
redis.call('HSET', KEYS[1], 'release', ARGV[2], 'generation', ARGV[3], 'dim', ARGV[4],
  'dtype', ARGV[5], 'epoch', ARGV[1])
if there[2] == ARGV[2] and there[3] == ARGV[3] then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'release', ARGV[2],
  'generation', ARGV[3], 'kind', ARGV[6], 'epoch', ARGV[1])
return 1
"""
)
