-- Write sessions and let go of them: all of them, or nothing. Where there is nothing to write, let
-- go of those that the token has.
--
-- KEYS    four for each session: its data, its lease (see acquire.lua), the list that wakes who
--         waits for it, and what tells that the token let go of it
-- ARGV    1: the number of this request
--         2: the token of the leases' holder
--         3: for how many milliseconds it is known that the token let go, or "" to keep the leases
--         then three for each session:
--         what to do: "set", "del", or "" to leave it as it is
--         its new data
--         in how many milliseconds it expires, "" for never
-- Returns an array: the number of this request, and 1, or 0 if the token lost one of the leases.
--
-- That a token let go is told by the number of the request by which it did; it is negative where
-- the token did not have the lease.
local number, token, remembered = ARGV[1], ARGV[2], ARGV[3]
local release = remembered ~= ''
local sessions = #KEYS / 4

local states, waited, changes = {}, {}, 0
local count = {held = 0, done = 0, late = 0, lost = 0}
for i = 1, #KEYS, 4 do
  local holder, since, flag =
    string.match(redis.call('GET', KEYS[i + 1]) or '', '^(%S+) (%d+) %d+(!?)$')
  local state = 'lost'
  if holder == token then
    state = tonumber(since) > tonumber(number) and 'late' or 'held'
  elseif tonumber(redis.call('GET', KEYS[i + 3]) or 0) > 0 then
    state = 'done'
  end
  states[i], waited[i], count[state] = state, flag == '!', count[state] + 1
  if ARGV[3 * (i - 1) / 4 + 4] ~= '' then
    changes = changes + 1
  end
end
if count.held < sessions and (changes > 0 or not release) then
  return {number, count.done + count.late == sessions and 1 or 0}
end

-- What takes memory first of all, since a server that is out of it refuses a script's first write
-- only.
for i = 1, #KEYS, 4 do
  local argument = 3 * (i - 1) / 4 + 4
  local action, data, milliseconds = ARGV[argument], ARGV[argument + 1], ARGV[argument + 2]
  if action == 'set' and milliseconds ~= '' then
    redis.call('SET', KEYS[i], data, 'PX', milliseconds)
  elseif action == 'set' then
    redis.call('SET', KEYS[i], data)
  end
end
for i = 1, #KEYS, 4 do
  if ARGV[3 * (i - 1) / 4 + 4] == 'del' then
    redis.call('DEL', KEYS[i])
  end
end

if release then
  for i, state in pairs(states) do
    local lease, wake = KEYS[i + 1], KEYS[i + 2]
    if state == 'held' then
      redis.call('DEL', lease)
    end
    if state == 'held' and waited[i] then
      if redis.call('EXISTS', wake) == 0 then
        redis.call('RPUSH', wake, '') -- the server wakes who has waited longest
      end
      redis.call('PEXPIRE', wake, 1000) -- nobody may be there any more
    end
    if state ~= 'late' then
      redis.call('SET', KEYS[i + 3], state == 'lost' and '-' .. number or number, 'PX', remembered)
    end
  end
end
return {number, count.lost == 0 and 1 or 0}
