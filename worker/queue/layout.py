"""What lies in Redis. The one file that knows its keys; `ns` is the namespace, `Q` a queue.

    ns:Q                list    ids of the hints that are ready, oldest first
    ns:Q.msgs           hash    id -> the hint, as dramatiq encodes a message
    ns:Q.wake           list    tokens: an idle consumer waits on it in BLPOP; at most WAKE_TOKENS_MAX
    ns:__epoch__        string  whose hints these are: the deployment of the dispatcher that says so again and again;
                                missing: Redis was flushed or replaced. It goes EPOCH_SECONDS after the last word
    ns:__quarantine__   list    messages that are no hints, newest first; at most QUARANTINE_MAX
    ns:__quarantined__  hash    reason -> how many ever

The first two are dramatiq's own, so a plain dramatiq producer or worker fits in. These are dramatiq's too; we
write none of them, and `inspection` reports what others left:

    ns:__acks__.WORKER.Q  set   taken, not yet acknowledged
    ns:__heartbeats__     zset  when each worker was last heard of
    ns:Q.XQ, ns:Q.XQ.msgs       dead letters
    ns:Q.DQ, ns:Q.DQ.msgs       delayed messages

**Taking a hint removes it.** dramatiq keeps a taken message until it is acknowledged, and moves it back when its
worker has been silent for 60 s. A hint needs neither: the row stays marked as hinted, and dispatch sends another
hint after 15 s, sooner than dramatiq would notice. So there are no acknowledgements that a full Redis refuses, no
liveness by wall clocks, and no hints that a lost reply strands in the hands of a living worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Wake tokens kept per queue. More idle consumers than this find the rest within their one-second wait.
WAKE_TOKENS_MAX: Final = 64

#: For so long a deployment has its namespace after its dispatcher was last heard of.
EPOCH_SECONDS: Final = 60.0

#: Bytes of the longest message that is decoded. 16 jobs with ids of 200 characters stay below a third of it.
MESSAGE_BYTES_MAX: Final = 65_536

#: Messages kept for people to look at, and bytes kept of each: 4 MB in all.
QUARANTINE_MAX: Final = 1_000
QUARANTINE_BYTES_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys of one queue."""

    ready: str
    messages: str
    wake: str
    dead: str


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one namespace."""

    namespace: str

    @property
    def epoch(self) -> str:
        return f"{self.namespace}:__epoch__"

    @property
    def quarantine(self) -> str:
        return f"{self.namespace}:__quarantine__"

    @property
    def quarantined(self) -> str:
        return f"{self.namespace}:__quarantined__"

    def queue(self, name: str) -> QueueKeys:
        ready = f"{self.namespace}:{name}"
        return QueueKeys(ready=ready, messages=f"{ready}.msgs", wake=f"{ready}.wake", dead=f"{ready}.XQ")


#: Adds hints to any number of queues at once and wakes as many consumers as there are messages.
#: KEYS: ready, messages, wake of each queue. ARGV: tokens to keep; for each queue the number of messages, then id
#: and message of each. A full Redis refuses it as a whole: memory is judged once, before a script's first write.
SEND: Final = """
local tokens_max = tonumber(ARGV[1])
local at = 2
for first = 1, #KEYS, 3 do
    local ready, messages, wake = KEYS[first], KEYS[first + 1], KEYS[first + 2]
    local count = tonumber(ARGV[at])
    at = at + 1
    for _ = 1, count do
        redis.call('HSET', messages, ARGV[at], ARGV[at + 1])
        redis.call('RPUSH', ready, ARGV[at])
        at = at + 2
    end
    for _ = 1, math.min(count, tokens_max) do
        redis.call('RPUSH', wake, '1')
    end
    redis.call('LTRIM', wake, -tokens_max, -1)
end
"""

#: Says for another while whose the hints are. A key that never ends is nobody's: older versions left such ones. So are
#: a stranger's that lasts longer than anybody says (forged, or older than a clock that was set back), and no string.
#: KEYS: epoch. ARGV: deployment, milliseconds, whether to take what is nobody's ('1').
#: Returns {whose it was, milliseconds that it was still to last}. A stranger's that lasts is left alone.
EPOCH: Final = """
local before, left, most = false, redis.call('PTTL', KEYS[1]), tonumber(ARGV[2])
if redis.call('TYPE', KEYS[1]).ok == 'string' then
    before = redis.call('GET', KEYS[1])
end
if before == ARGV[1] and left > 0 then
    if left < most / 2 or left > most then
        redis.call('PEXPIRE', KEYS[1], ARGV[2])
    end
elseif (not before or left <= 0 or left > most) and ARGV[3] == '1' then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return {before, left}
"""

# An entry is one line (reason, queue, milliseconds since 1970, length of the whole message), then its first bytes.
# Both scripts must also run when Redis is full, or nothing would drain: hence the flag, which producers don't have.
_QUARANTINE_FUNCTION: Final = """#!lua flags=allow-oom
local function quarantine(list, counts, queue, reason, length, head, keep)
    local now = redis.call('TIME')
    local milliseconds = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
    redis.call('LPUSH', list, table.concat({reason, queue, milliseconds, length}, ' ') .. '\\n' .. head)
    redis.call('LTRIM', list, 0, keep - 1)
    redis.call('HINCRBY', counts, reason, 1)
end
"""

#: Takes up to `count` messages for good. Ids without a message are counted, messages beyond the limit are
#: quarantined without ever leaving Redis. When nothing is left ready, old wake tokens go too.
#: KEYS: ready, messages, wake, quarantine, quarantined. ARGV: count, queue, bytes at most, bytes kept, entries kept.
#: Returns {messages, how many ids had none, how many were too long}.
TAKE: Final = (
    _QUARANTINE_FUNCTION
    + """
local count, queue = tonumber(ARGV[1]), ARGV[2]
local taken, without, too_long = {}, 0, 0
while #taken < count and without + too_long < 100 do
    local id = redis.call('LPOP', KEYS[1])
    if not id then
        redis.call('DEL', KEYS[3])
        break
    end
    local length = redis.call('HSTRLEN', KEYS[2], id)
    if length == 0 then
        without = without + 1
        redis.call('HINCRBY', KEYS[5], 'bodiless', 1)
    else
        local message = redis.call('HGET', KEYS[2], id)
        if length > tonumber(ARGV[3]) then
            too_long = too_long + 1
            quarantine(KEYS[4], KEYS[5], queue, 'oversized', length, string.sub(message, 1, ARGV[4]), ARGV[5])
        else
            taken[#taken + 1] = message
        end
    end
    redis.call('HDEL', KEYS[2], id)
end
return {taken, without, too_long}
"""
)

#: Puts a message that was taken, and is no hint, into quarantine.
#: KEYS: quarantine, quarantined. ARGV: queue, reason, length, first bytes, entries kept.
QUARANTINE: Final = (
    _QUARANTINE_FUNCTION
    + """
quarantine(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
"""
)
