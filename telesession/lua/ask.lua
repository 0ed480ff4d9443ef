-- Carry out one command that changes nothing.
--
-- KEYS    the keys that the command reads
-- ARGV    1: a text that no other request has
--         then the command and its arguments
-- Returns an array: ARGV[1], and the command's result.
return {ARGV[1], redis.call(unpack(ARGV, 2))}
