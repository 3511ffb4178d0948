-- GopherStore's protocol, GBP (docs/GBP.md), for Wireshark and tshark.
--
--   tshark -X lua_script:scripts/gbp.lua -i lo -f 'tcp port 8000'
--   wireshark -X lua_script:scripts/gbp.lua capture.pcap
--
-- or, for good, copy it into the folder of personal Lua plugins (Help, About Wireshark, Folders). The ports are a
-- preference (-o gbp.ports:8000-8002); other ones also with Decode As (-d tcp.port==9000,gbp).
--
-- Frames may be cut by segments and share them. A response belongs to the oldest request of its connection that has none
-- yet, so where a capture begins in the middle of a connection the pairs may be wrong. Checksums of the replication
-- stream are shown and not computed: gopherstore-cli decode does that. Where the client's port is lower than the node's
-- and Wireshark knows another protocol by it, that one wins: Decode As settles it.
--
-- Filters: gbp.opcode == 1, gbp.status == 1, gbp.key contains "user", gbp.time > 0.01, gbp.stream.opcode == 0x61,
-- _ws.expert.message for responses that are errors.

local gbp = Proto("gbp", "GopherStore Binary Protocol")

-- tests/protocol/tables.rs compares these tables with the server's.

local OPCODES = {
    [0x01] = "SET",
    [0x02] = "GET",
    [0x03] = "DEL",
    [0x04] = "PING",
    [0x05] = "SETAT",
    [0x06] = "PUT",
    [0x07] = "TAKE",
    [0x08] = "ADD",
    [0x0b] = "EXPIRE",
    [0x0c] = "TTL",
    [0x0e] = "SCAN",
    [0x0f] = "BATCH",
    [0x10] = "SYNC",
    [0x11] = "WATCH",
    [0x40] = "STATUS",
    [0x41] = "DISCARD",
    [0x42] = "SUMS",
    [0x43] = "LIST",
    [0x44] = "SNAPSHOT",
    [0x60] = "FOLLOW",
    [0x67] = "EPOCH",
}

-- The fields at the start of a request's value, each with its length.
local OPERANDS = {
    [0x05] = { { "deadline", 8 } },
    [0x06] = { { "if", 1 }, { "expiry", 1 }, { "want", 1 }, { "time", 8 }, { "expected_len", 2 } },
    [0x07] = { { "if", 1 }, { "want", 1 }, { "expected_len", 2 } },
    [0x08] = { { "want", 1 }, { "delta", 8 }, { "start", 8 }, { "ttl", 8 } },
    [0x0b] = { { "expiry", 1 }, { "time", 8 } },
    [0x0e] = { { "want", 1 }, { "max", 4 }, { "incarnation", 8 }, { "partition", 4 } },
    [0x10] = { { "mode", 1 }, { "timeout", 4 } },
    [0x11] = { { "want", 1 }, { "epoch", 8 }, { "index", 8 }, { "nonce", 8 } },
    [0x42] = { { "incarnation", 8 }, { "partition", 4 }, { "bits", 1 } },
    [0x43] = { { "incarnation", 8 }, { "partition", 4 }, { "bits", 1 } },
    [0x60] = { { "version", 1 }, { "flags", 1 }, { "epoch", 8 }, { "nonce", 8 }, { "last_index", 8 } },
    [0x67] = { { "epoch", 8 }, { "nonce", 8 } },
}

local STATUSES = {
    [0x00] = "OK",
    [0x01] = "ERROR",
    [0x02] = "NOT_LEADER",
    [0x03] = "NOT_FOUND",
    [0x04] = "LOADING",
    [0x05] = "CONFLICT",
    [0x06] = "FULL",
    [0x07] = "TIMEOUT",
    [0x08] = "LOST",
    [0x0B] = "COMPACTED",
}

local STREAM_OPCODES = {
    [0x61] = "ENTRIES",
    [0x62] = "SNAPSHOT_BEGIN",
    [0x63] = "SNAPSHOT_CHUNK",
    [0x64] = "SNAPSHOT_END",
    [0x65] = "HEARTBEAT",
    [0x66] = "ACK",
    [0x68] = "LEAD",
    [0x69] = "EVENT",
}

-- The fields of a stream frame's key, each with its length.
local LAYOUTS = {
    [0x61] = {
        { "epoch", 8 }, { "first_index", 8 }, { "count", 4 }, { "committed_index", 8 }, { "time_ms", 8 },
        { "digest", 16 }, { "value_crc", 4 }, { "head_crc", 4 },
    },
    [0x62] = { { "epoch", 8 }, { "keys", 8 }, { "bytes", 8 }, { "value_crc", 4 }, { "head_crc", 4 } },
    [0x63] = { { "epoch", 8 }, { "sequence", 8 }, { "count", 4 }, { "value_crc", 4 }, { "head_crc", 4 } },
    [0x64] = {
        { "epoch", 8 }, { "index", 8 }, { "digest", 16 }, { "chunks", 8 },
        { "value_crc", 4 }, { "head_crc", 4 },
    },
    [0x65] = {
        { "epoch", 8 }, { "round", 8 }, { "last_index", 8 }, { "committed_index", 8 }, { "durable_index", 8 },
        { "time_ms", 8 }, { "digest_index", 8 }, { "digest", 16 }, { "value_crc", 4 }, { "head_crc", 4 },
    },
    [0x66] = {
        { "epoch", 8 }, { "round", 8 }, { "last_index", 8 }, { "applied_index", 8 }, { "durable_index", 8 },
        { "value_crc", 4 }, { "head_crc", 4 },
    },
    [0x68] = { { "epoch", 8 }, { "last_index", 8 }, { "digest", 16 }, { "value_crc", 4 }, { "head_crc", 4 } },
    [0x69] = {
        { "epoch", 8 }, { "index", 8 }, { "values", 1 }, { "count", 4 }, { "value_crc", 4 }, { "head_crc", 4 },
    },
}

local TOKEN_LEN = 24
local REQUEST_HEADER_LEN = 7
local RESPONSE_HEADER_LEN = 5
-- Client frames of a batch, and epochs of a history, that get lines of their own.
local ITEMS_MAX = 1000
-- Frames that the packet list names.
local INFO_MAX = 8
-- Bytes of a key or a value in a line.
local TEXT_MAX = 64

local f = {
    opcode = ProtoField.uint8("gbp.opcode", "Opcode", base.HEX, OPCODES),
    status = ProtoField.uint8("gbp.status", "Status", base.HEX, STATUSES),
    stream_opcode = ProtoField.uint8("gbp.stream.opcode", "Opcode", base.HEX, STREAM_OPCODES),
    key_len = ProtoField.uint16("gbp.key_len", "Key length"),
    value_len = ProtoField.uint32("gbp.value_len", "Value length"),
    key = ProtoField.bytes("gbp.key", "Key"),
    value = ProtoField.bytes("gbp.value", "Value"),
    expected = ProtoField.bytes("gbp.expected", "Expected"),
    message = ProtoField.string("gbp.message", "Message"),
    position = ProtoField.uint8("gbp.batch.position", "Position, from 0"),
    request_in = ProtoField.framenum("gbp.request_in", "Request in", base.NONE, frametype.REQUEST),
    response_in = ProtoField.framenum("gbp.response_in", "Response in", base.NONE, frametype.RESPONSE),
    response_to = ProtoField.uint8("gbp.response_to", "Response to", base.HEX, OPCODES),
    time = ProtoField.relative_time("gbp.time", "Time since the request"),
    version = ProtoField.uint8("gbp.follow.version", "Version"),
    flags = ProtoField.uint8("gbp.follow.flags", "Flags", base.HEX),
    snapshot = ProtoField.bool("gbp.follow.snapshot", "Requests a snapshot", 8, nil, 0x02),
    to_lead = ProtoField.bool("gbp.follow.to_lead", "Is to lead", 8, nil, 0x04),
    cluster_id = ProtoField.bytes("gbp.follow.cluster_id", "Cluster id"),
    sync_mode = ProtoField.uint8("gbp.sync.mode", "Mode", base.DEC, { [0] = "position", [1] = "at token", [2] = "durable" }),
    mode = ProtoField.uint8("gbp.follow.mode", "Mode", base.DEC, { [0] = "resume", [1] = "snapshot", [2] = "unknown data set" }),
    from_index = ProtoField.uint64("gbp.follow.from_index", "From index"),
    epochs = ProtoField.uint16("gbp.history.count", "Epochs"),
    start_index = ProtoField.uint64("gbp.history.start_index", "Start index"),
    token_index = ProtoField.uint64("gbp.token.index", "Index"),
    nonce = ProtoField.uint64("gbp.nonce", "Nonce", base.HEX),
    epoch = ProtoField.uint64("gbp.epoch", "Epoch"),
    first_index = ProtoField.uint64("gbp.stream.first_index", "First index"),
    count = ProtoField.uint32("gbp.stream.count", "Count"),
    keys = ProtoField.uint64("gbp.stream.keys", "Keys, about"),
    bytes = ProtoField.uint64("gbp.stream.bytes", "Bytes, about"),
    sequence = ProtoField.uint64("gbp.stream.sequence", "Sequence"),
    index = ProtoField.uint64("gbp.stream.index", "Index"),
    values = ProtoField.uint8("gbp.stream.values", "Values"),
    digest = ProtoField.bytes("gbp.stream.digest", "Digest"),
    chunks = ProtoField.uint64("gbp.stream.chunks", "Chunks"),
    committed_index = ProtoField.uint64("gbp.stream.committed_index", "Committed index"),
    time_ms = ProtoField.uint64("gbp.stream.time_ms", "Leader's clock, ms since 1970"),
    round = ProtoField.uint64("gbp.stream.round", "Round"),
    durable_index = ProtoField.uint64("gbp.stream.durable_index", "Durable index"),
    last_index = ProtoField.uint64("gbp.stream.last_index", "Last index"),
    digest_index = ProtoField.uint64("gbp.stream.digest_index", "Digest's index"),
    applied_index = ProtoField.uint64("gbp.stream.applied_index", "Applied index"),
    value_crc = ProtoField.uint32("gbp.stream.value_crc", "Checksum of the value", base.HEX),
    head_crc = ProtoField.uint32("gbp.stream.head_crc", "Checksum of the head", base.HEX),
}
-- An operand without a field above is a number of its own.
local NUMBERS = { [1] = ProtoField.uint8, [2] = ProtoField.uint16, [4] = ProtoField.uint32, [8] = ProtoField.uint64 }
for _, operands in pairs(OPERANDS) do
    for _, operand in ipairs(operands) do
        local name, len = operand[1], operand[2]
        f[name] = f[name] or NUMBERS[len]("gbp.operand." .. name, name, base.DEC_HEX)
    end
end
for _, field in pairs(f) do
    table.insert(gbp.fields, field)
end

local e = {
    error = ProtoExpert.new(
        "gbp.response.error", "The node answered ERROR, FULL, TIMEOUT, LOST or COMPACTED", expert.group.RESPONSE_CODE, expert.severity.ERROR
    ),
    elsewhere = ProtoExpert.new(
        "gbp.response.elsewhere", "The node cannot answer now", expert.group.RESPONSE_CODE, expert.severity.WARN
    ),
    not_found = ProtoExpert.new(
        "gbp.response.not_found", "No such key", expert.group.RESPONSE_CODE, expert.severity.CHAT
    ),
    conflict = ProtoExpert.new(
        "gbp.response.conflict", "A condition is not met", expert.group.RESPONSE_CODE, expert.severity.CHAT
    ),
    unknown = ProtoExpert.new("gbp.unknown", "Not of GBP version 1", expert.group.PROTOCOL, expert.severity.WARN),
    malformed = ProtoExpert.new("gbp.malformed", "Malformed frame", expert.group.MALFORMED, expert.severity.ERROR),
}
for _, info in pairs(e) do
    table.insert(gbp.experts, info)
end

gbp.prefs.ports = Pref.range("TCP ports", "8000-8002", "Ports that nodes listen on, such as 8000-8002", 65535)

local tcp_stream = Field.new("tcp.stream")

-- Of each connection, by its number: the requests that wait for a response, oldest first.
local waiting
-- Of each request and response, by its place: what it belongs to. Wireshark dissects in order once, then as it likes.
local pairs_by_place

local registered = ""
function gbp.init()
    waiting = {}
    pairs_by_place = {}
    local ports = gbp.prefs.ports
    if ports ~= registered then
        local by_port = DissectorTable.get("tcp.port")
        if registered ~= "" then
            by_port:remove(registered, gbp)
        end
        by_port:add(ports, gbp)
        registered = ports
    end
end

local function hex(byte)
    return string.format("0x%02x", byte)
end

-- Bytes as quoted ASCII, cut where they are many.
local function quoted(range)
    local len = range and range:len() or 0
    if len == 0 then
        return '""'
    end
    local text = range:range(0, math.min(len, TEXT_MAX)):raw()
    text = text:gsub('[%c"\\\127-\255]', function(char)
        return string.format("\\x%02x", char:byte())
    end)
    return '"' .. text .. '"' .. (len > TEXT_MAX and "..." or "")
end

-- Adds bytes that are the user's, and returns them in quotes.
local function add_bytes(tree, field, tvb, offset, len)
    if len == 0 then
        return '""'
    end
    local range = tvb(offset, len)
    local text = quoted(range)
    tree:add(field, range):append_text(" " .. text)
    return text
end

-- Adds opcode and lengths.
local function add_request_header(tree, field, tvb, offset)
    tree:add(field, tvb(offset, 1))
    tree:add(f.key_len, tvb(offset + 1, 2))
    tree:add(f.value_len, tvb(offset + 3, 4))
    return tvb(offset, 1):uint(), tvb(offset + 1, 2):uint(), tvb(offset + 3, 4):uint()
end

local function add_history(tree, tvb, offset, finish)
    if finish - offset < 2 then
        tree:add_proto_expert_info(e.malformed, "the history is cut")
        return
    end
    local count = tvb(offset, 2):uint()
    tree:add(f.epochs, tvb(offset, 2))
    if finish - offset ~= 2 + 24 * count then
        tree:add_proto_expert_info(e.malformed, "the history has not the length of " .. count .. " epochs")
        return
    end
    for number = 0, math.min(count, ITEMS_MAX) - 1 do
        local at = offset + 2 + 24 * number
        local start = tree:add(gbp, tvb(at, 24), "Epoch " .. number)
        start:add(f.epoch, tvb(at, 8))
        start:add(f.nonce, tvb(at + 8, 8))
        start:add(f.start_index, tvb(at + 16, 8))
    end
end

-- A position of the log.
local function add_token(tree, tvb, offset)
    tree:add(f.epoch, tvb(offset, 8))
    tree:add(f.token_index, tvb(offset + 8, 8))
    tree:add(f.nonce, tvb(offset + 16, 8))
end

local add_batch

-- Adds the value of a request: its operands, and what is behind them.
local function add_value(tree, tvb, offset, opcode, value_len)
    if opcode == 0x0f then
        add_batch(tree, tvb, offset, offset + value_len, true, true)
        return
    end
    local operands, finish = OPERANDS[opcode] or {}, offset + value_len
    local needed = 0
    for _, operand in ipairs(operands) do
        needed = needed + operand[2]
    end
    -- A LIST without a value is one of a single key.
    if value_len < needed and not (opcode == 0x43 and value_len == 0) then
        add_bytes(tree, f.value, tvb, offset, value_len)
        local text = "the value of " .. OPCODES[opcode] .. " has " .. needed .. " bytes at least"
        tree:add_proto_expert_info(e.malformed, text)
        return
    end
    if value_len > 0 then
        for _, operand in ipairs(operands) do
            local name, len = operand[1], operand[2]
            -- FOLLOW's response has a mode too, of another meaning.
            tree:add(name == "mode" and f.sync_mode or f[name], tvb(offset, len))
            if name == "flags" then
                tree:add(f.snapshot, tvb(offset, len))
                tree:add(f.to_lead, tvb(offset, len))
            end
            offset = offset + len
        end
    end
    local last = operands[#operands]
    if value_len > 0 and last and last[1] == "expected_len" then
        local len = math.min(tvb(offset - last[2], last[2]):uint(), finish - offset)
        add_bytes(tree, f.expected, tvb, offset, len)
        offset = offset + len
    elseif opcode == 0x10 and finish - offset == TOKEN_LEN then
        add_token(tree, tvb, offset)
        return
    end
    add_bytes(tree, opcode == 0x60 and f.cluster_id or f.value, tvb, offset, finish - offset)
end

-- Bytes of the value that are there of a frame in a batch: all of them, or no more than its operands.
local function sent_len(opcode, value_len, has_values)
    if has_values then
        return value_len
    end
    local len = 0
    for _, operand in ipairs(OPERANDS[opcode] or {}) do
        len = len + operand[2]
    end
    return math.min(len, value_len)
end

-- The client frames of a batch.
function add_batch(tree, tvb, offset, finish, has_values, is_nested)
    local number = 0
    while offset < finish do
        if number == ITEMS_MAX then
            tree:add(gbp, tvb(offset, finish - offset), "More, not shown")
            return
        end
        if finish - offset < REQUEST_HEADER_LEN then
            tree:add_proto_expert_info(e.malformed, "the last frame of the batch is cut")
            return
        end
        local key_len = tvb(offset + 1, 2):uint()
        local value_len = sent_len(tvb(offset, 1):uint(), tvb(offset + 3, 4):uint(), has_values)
        local len = REQUEST_HEADER_LEN + key_len + value_len
        if len > finish - offset then
            tree:add_proto_expert_info(e.malformed, "the last frame of the batch is cut")
            return
        end
        local entry = tree:add(gbp, tvb(offset, len))
        local opcode = add_request_header(entry, f.opcode, tvb, offset)
        local key = add_bytes(entry, f.key, tvb, offset + REQUEST_HEADER_LEN, key_len)
        -- One BATCH in another is none of the protocol.
        if opcode == 0x0f and is_nested then
            entry:add_proto_expert_info(e.malformed, "a BATCH in a BATCH")
        else
            add_value(entry, tvb, offset + REQUEST_HEADER_LEN + key_len, opcode, value_len)
        end
        entry:set_text((OPCODES[opcode] or hex(opcode)) .. " " .. key)
        offset = offset + len
        number = number + 1
    end
end

local function add_stream(tree, tvb, offset, key_len, value_len)
    local opcode = add_request_header(tree, f.stream_opcode, tvb, offset)
    local at = offset + REQUEST_HEADER_LEN
    local text = {}
    for _, field in ipairs(LAYOUTS[opcode]) do
        local name, len = field[1], field[2]
        tree:add(f[name], tvb(at, len))
        if len <= 8 and not name:find("_crc$") then
            table.insert(text, name .. "=" .. tostring(tvb(at, len):uint64()))
        end
        at = at + len
    end
    local finish = at + value_len
    if opcode == 0x62 then
        add_history(tree, tvb, at, finish)
    elseif opcode == 0x61 or opcode == 0x63 then
        add_batch(tree, tvb, at, finish, true)
    elseif opcode == 0x69 then
        add_batch(tree, tvb, at, finish, tvb(offset + REQUEST_HEADER_LEN + 16, 1):uint() ~= 0)
    elseif value_len > 0 then
        tree:add(f.value, tvb(at, value_len))
        tree:add_proto_expert_info(e.malformed, STREAM_OPCODES[opcode] .. " has no value")
    end
    return STREAM_OPCODES[opcode] .. " " .. table.concat(text, " ")
end

-- The pair that the request or response at this place belongs to; the first pass finds it.
local function pair_of(pinfo, place, find)
    if not pinfo.visited then
        pairs_by_place[place] = pairs_by_place[place] or find()
    end
    return pairs_by_place[place]
end

local function add_request(tree, tvb, offset, pinfo, stream, place)
    local opcode, key_len, value_len = add_request_header(tree, f.opcode, tvb, offset)
    local name = OPCODES[opcode]
    local at = offset + REQUEST_HEADER_LEN
    local key = add_bytes(tree, f.key, tvb, at, key_len)
    add_value(tree, tvb, at + key_len, opcode, value_len)
    if not name then
        tree:add_proto_expert_info(e.unknown, "unknown opcode " .. hex(opcode))
    end
    local request = pair_of(pinfo, place, function()
        local request = { opcode = opcode, number = pinfo.number, time = pinfo.rel_ts }
        local queue = waiting[stream] or { first = 1, last = 0 }
        waiting[stream] = queue
        queue.last = queue.last + 1
        queue[queue.last] = request
        return request
    end)
    if request and request.response_number then
        tree:add(f.response_in, request.response_number):set_generated()
    end
    local text = name or ("opcode " .. hex(opcode))
    if key_len > 0 or opcode == 0x01 or opcode == 0x02 or opcode == 0x03 then
        text = text .. " " .. key
    end
    return text
end

-- The responses to the requests of a batch.
local function add_batch_responses(tree, tvb, offset, finish)
    while offset < finish do
        local len = finish - offset
        if len >= RESPONSE_HEADER_LEN then
            len = RESPONSE_HEADER_LEN + tvb(offset + 1, 4):uint()
        end
        if len < RESPONSE_HEADER_LEN or len > finish - offset then
            tree:add_proto_expert_info(e.malformed, "the last response of the batch is cut")
            return
        end
        local status = tvb(offset, 1):uint()
        local entry = tree:add(gbp, tvb(offset, len))
        entry:add(f.status, tvb(offset, 1))
        entry:add(f.value_len, tvb(offset + 1, 4))
        local value = add_bytes(entry, f.value, tvb, offset + RESPONSE_HEADER_LEN, len - RESPONSE_HEADER_LEN)
        entry:set_text((STATUSES[status] or hex(status)) .. " " .. value)
        offset = offset + len
    end
end

local function add_response(tree, tvb, offset, pinfo, stream, place)
    local status, value_len = tvb(offset, 1):uint(), tvb(offset + 1, 4):uint()
    tree:add(f.status, tvb(offset, 1))
    tree:add(f.value_len, tvb(offset + 1, 4))
    local request = pair_of(pinfo, place, function()
        local queue = waiting[stream]
        local request = queue and queue[queue.first]
        if request then
            queue[queue.first] = nil
            queue.first = queue.first + 1
            request.response_number = pinfo.number
        end
        return request
    end)
    local at = offset + RESPONSE_HEADER_LEN
    local text = STATUSES[status] or ("status " .. hex(status))
    local is_message = status ~= 0x00 and status ~= 0x03
    local is_stream = request and (request.opcode == 0x60 or request.opcode == 0x11)
    if status == 0x00 and is_stream and value_len >= 11 then
        tree:add(f.mode, tvb(at, 1))
        tree:add(f.from_index, tvb(at + 1, 8))
        add_history(tree, tvb, at + 9, at + value_len)
    elseif status == 0x00 and request and request.opcode == 0x10 and value_len == TOKEN_LEN then
        add_token(tree, tvb, at)
    elseif request and request.opcode == 0x0f and status == 0x00 then
        add_batch_responses(tree, tvb, at, at + value_len)
    elseif request and request.opcode == 0x0f and status == 0x05 and value_len > 0 then
        local position = tvb(at, 1):uint()
        tree:add(f.position, tvb(at, 1))
        add_batch_responses(tree, tvb, at + 1, at + value_len)
        text = text .. " at " .. position
    elseif value_len > 0 then
        local value = quoted(tvb(at, value_len))
        if is_message then
            tree:add(f.message, tvb(at, value_len), tvb(at, math.min(value_len, 1024)):string(ENC_UTF_8))
            text = text .. " " .. value
        else
            tree:add(f.value, tvb(at, value_len)):append_text(" " .. value)
        end
    end
    if status == 0x01 or status == 0x06 or status == 0x07 or status == 0x08 or status == 0x0B then
        tree:add_proto_expert_info(e.error, text)
    elseif status == 0x02 or status == 0x04 then
        tree:add_proto_expert_info(e.elsewhere, text)
    elseif status == 0x03 then
        tree:add_proto_expert_info(e.not_found)
    elseif status == 0x05 then
        tree:add_proto_expert_info(e.conflict)
    elseif not STATUSES[status] then
        tree:add_proto_expert_info(e.unknown, "unknown status " .. hex(status))
    end
    if request then
        tree:add(f.response_to, request.opcode):set_generated()
        tree:add(f.request_in, request.number):set_generated()
        local seconds = math.max(pinfo.rel_ts - request.time, 0)
        local whole = math.floor(seconds)
        tree:add(f.time, NSTime(whole, math.floor((seconds - whole) * 1e9 + 0.5))):set_generated()
        text = text .. " to " .. (OPCODES[request.opcode] or hex(request.opcode))
    end
    return text
end

-- Printable, or a tab or an end of line.
local function is_text(byte)
    return (byte >= 0x20 and byte <= 0x7e) or byte == 0x09 or byte == 0x0a or byte == 0x0d
end

-- The frame at offset: what adds it to a tree, and its length, or nothing for the length where its header is cut, or
-- nothing at all where it is none. Whoever sends an opcode of the stream with its fixed length of key sends the stream:
-- no request has that opcode, and no response that status.
local function frame_at(tvb, offset, is_request)
    local there = tvb:len() - offset
    local first = tvb(offset, 1):uint()
    if LAYOUTS[first] then
        if there < REQUEST_HEADER_LEN then
            return add_stream
        end
        local key_len, value_len = tvb(offset + 1, 2):uint(), tvb(offset + 3, 4):uint()
        local expected = 0
        for _, field in ipairs(LAYOUTS[first]) do
            expected = expected + field[2]
        end
        if key_len == expected then
            return add_stream, REQUEST_HEADER_LEN + key_len + value_len, key_len, value_len
        end
    end
    if is_request then
        if is_text(first) and not OPCODES[first] then
            return nil
        end
        if there < REQUEST_HEADER_LEN then
            return add_request
        end
        return add_request, REQUEST_HEADER_LEN + tvb(offset + 1, 2):uint() + tvb(offset + 3, 4):uint()
    end
    if is_text(first) then
        return nil
    end
    if there < RESPONSE_HEADER_LEN then
        return add_response
    end
    return add_response, RESPONSE_HEADER_LEN + tvb(offset + 1, 4):uint()
end

function gbp.dissector(tvb, pinfo, tree)
    if tvb:len() == 0 then
        return 0
    end
    pinfo.cols.protocol = "GBP"
    local stream = tcp_stream()
    stream = stream and stream.value or 0
    -- The port by which this dissector was chosen is the node's.
    local is_request = pinfo.dst_port == pinfo.match_uint
    local arrow = is_request and "> " or "< "
    -- Of a segment and of what was put together from several, which may come in one packet.
    local origin = pinfo.number .. ":" .. tvb:offset() .. ":" .. tvb:len() .. ":"
    local offset, count, texts = 0, 0, {}
    while offset < tvb:len() do
        local add, len, key_len, value_len = frame_at(tvb, offset, is_request)
        if not add then
            local rest = tree:add(gbp, tvb(offset), "No GBP: " .. quoted(tvb(offset)))
            rest:add_proto_expert_info(e.unknown, "text where a frame would begin")
            table.insert(texts, "text " .. quoted(tvb(offset)))
            break
        end
        local there = tvb:len() - offset
        if not len or len > there then
            pinfo.desegment_offset = offset
            pinfo.desegment_len = len and len - there or DESEGMENT_ONE_MORE_SEGMENT
            break
        end
        local frame = tree:add(gbp, tvb(offset, len))
        local text
        if add == add_stream then
            text = add_stream(frame, tvb, offset, key_len, value_len)
        else
            text = add(frame, tvb, offset, pinfo, stream, origin .. offset)
        end
        frame:set_text("GBP, " .. text .. ", " .. len .. " bytes")
        count = count + 1
        if count <= INFO_MAX then
            table.insert(texts, text)
        end
        offset = offset + len
    end
    if count > INFO_MAX then
        table.insert(texts, (count - INFO_MAX) .. " more")
    end
    if #texts > 0 then
        -- The bytes behind a reassembled frame have a part of their own in the same line.
        pinfo.cols.info = arrow .. table.concat(texts, ", ") .. " "
    end
    return tvb:len()
end

-- For Decode As, whatever the ports are.
DissectorTable.get("tcp.port"):add_for_decode_as(gbp)
