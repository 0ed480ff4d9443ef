-- Write sessions and release them: all of them, or nothing. Where there is nothing to write, it
-- releases those that the token has.
--
-- KEYS    four for each session: its data, its lease (see acquire.lua), the list that wakes waiting
--         clients, and the token's mark that it released the session
-- ARGV    1: the holder's token, a blank, and the number of this request
--         2: for how many milliseconds the marks are kept, or "" to keep the leases
--         then two for each session:
--         in how many milliseconds it expires, or "never"; "del" to remove it, "" to leave it
--         its new data
-- Returns an array: ARGV[1], and 1, or 0 if the token lost one of the leases.
--
-- A mark is the number of the releasing request, negative if the token did not have the lease.
local request, remembered = ARGV[1], ARGV[2]
local token, number = string.sub(request, 1, -16), string.sub(request, -15)

local held, done, late = {}, {}, {}
local missing, over, changes = 0, 0, false
for i = 1, #KEYS, 4 do
  local lease = redis.call('GET', KEYS[i + 1]) or ''
  local mine = string.sub(lease, 1, #token) == token
  late[i] = mine and string.sub(lease, #token + 1, #request) > number
  if mine and not late[i] then
    held[i] = lease
  else
    missing = missing + 1
    done[i] = late[i] or tonumber(redis.call('GET', KEYS[i + 3]) or 0) > 0
    over = over + (done[i] and 1 or 0)
  end
  changes = changes or ARGV[(i + 5) / 2] ~= ''
end
if missing > 0 and (changes or remembered == '') then
  return {request, over == #KEYS / 4 and 1 or 0}
end

-- Writes that take memory come first, since a server without free memory refuses a script's first
-- write only.
for i = 1, #KEYS, 4 do
  local expiry, data = ARGV[(i + 5) / 2], ARGV[(i + 7) / 2]
  if expiry == 'never' then
    redis.call('SET', KEYS[i], data)
  elseif expiry ~= '' and expiry ~= 'del' then
    redis.call('SET', KEYS[i], data, 'PX', expiry)
  end
end
for i = 1, #KEYS, 4 do
  if ARGV[(i + 5) / 2] == 'del' then
    redis.call('DEL', KEYS[i])
  end
end

for i = 1, remembered ~= '' and #KEYS or 0, 4 do
  if held[i] then
    redis.call('DEL', KEYS[i + 1])
    if string.sub(held[i], -1) == '!' then
      local wake = KEYS[i + 2]
      if redis.call('EXISTS', wake) == 0 then
        redis.call('RPUSH', wake, '') -- wakes the client that has waited longest
      end
      redis.call('PEXPIRE', wake, 1000) -- the waiting clients may be gone
    end
  end
  if not late[i] then
    local mark = (held[i] or done[i]) and number or '-' .. number
    redis.call('SET', KEYS[i + 3], mark, 'PX', remembered)
  end
end
return {request, over == missing and 1 or 0}
