-- vfio-user in Wireshark and tshark: captures as `outboard proxy --pcap` writes them.
--
-- vfio-user specification, all commands. A packet is of link type USER0: a pseudo-header of 8 bytes
-- (version, direction, socket, whether it continues the packet before it, descriptors, connection), then
-- the message.
-- Nothing has to be set up: put this file where Wireshark looks for Lua plugins, or name it
-- (`tshark -X lua_script:vfio_user.lua -r boot.pcapng`).

local vfio_user = Proto("vfio_user", "vfio-user")

local PSEUDO_HEADER, HEADER = 8, 16
local PIECE = 0x40000 -- a packet of this length goes on in the next one
local REPLY, NO_REPLY, ERROR = 0x1, 0x10, 0x20

local COMMANDS = {
  [1] = "VERSION", [2] = "DMA_MAP", [3] = "DMA_UNMAP", [4] = "DEVICE_GET_INFO",
  [5] = "DEVICE_GET_REGION_INFO", [6] = "DEVICE_GET_REGION_IO_FDS", [7] = "DEVICE_GET_IRQ_INFO",
  [8] = "DEVICE_SET_IRQS", [9] = "REGION_READ", [10] = "REGION_WRITE", [11] = "DMA_READ",
  [12] = "DMA_WRITE", [13] = "DEVICE_RESET", [14] = "DIRTY_PAGES", [15] = "REGION_WRITE_MULTI",
  [16] = "DEVICE_FEATURE", [17] = "MIG_DATA_READ", [18] = "MIG_DATA_WRITE",
}
local DMA_READ, DMA_WRITE = 11, 12
local REGIONS = {
  [0] = "BAR0", [1] = "BAR1", [2] = "BAR2", [3] = "BAR3", [4] = "BAR4", [5] = "BAR5",
  [6] = "ROM", [7] = "config", [8] = "VGA",
}
local CONFIG = 7
local CONFIG_REGISTERS = {
  [0x00] = "VENDOR_ID", [0x02] = "DEVICE_ID", [0x04] = "COMMAND", [0x06] = "STATUS", [0x08] = "REVISION_ID",
  [0x09] = "CLASS_CODE", [0x0c] = "CACHE_LINE_SIZE", [0x0d] = "LATENCY_TIMER", [0x0e] = "HEADER_TYPE",
  [0x0f] = "BIST", [0x10] = "BAR0", [0x14] = "BAR1", [0x18] = "BAR2", [0x1c] = "BAR3", [0x20] = "BAR4",
  [0x24] = "BAR5", [0x28] = "CARDBUS_CIS", [0x2c] = "SUBSYSTEM_VENDOR_ID", [0x2e] = "SUBSYSTEM_ID",
  [0x30] = "ROM_BAR", [0x34] = "CAPABILITIES", [0x3c] = "INTERRUPT_LINE", [0x3d] = "INTERRUPT_PIN",
  [0x3e] = "MIN_GNT", [0x3f] = "MAX_LAT",
}
local IRQS = { [0] = "INTx", [1] = "MSI", [2] = "MSI-X", [3] = "ERR", [4] = "REQ" }
local IO_FD_TYPES = { [0] = "ioeventfd", [1] = "ioregionfd", [2] = "shadow ioeventfd" }
local CAPABILITIES = { [1] = "sparse mmap", [2] = "type", [16] = "sparse mmap, descriptors", [0x8001] = "sparse mmap, descriptors" }
local FEATURES = {
  [0] = "PCI_VF_TOKEN", [1] = "MIGRATION", [2] = "MIG_DEVICE_STATE", [3] = "LOW_POWER_ENTRY",
  [4] = "LOW_POWER_ENTRY_WITH_WAKEUP", [5] = "LOW_POWER_EXIT", [6] = "DMA_LOGGING_START",
  [7] = "DMA_LOGGING_STOP", [8] = "DMA_LOGGING_REPORT", [9] = "MIG_DATA_SIZE", [10] = "BUS_MASTER",
}
local STATES = {
  [0] = "ERROR", [1] = "STOP", [2] = "RUNNING", [3] = "STOP_COPY", [4] = "RESUMING", [5] = "RUNNING_P2P",
  [6] = "PRE_COPY", [7] = "PRE_COPY_P2P",
}
local ERRNOS = {
  [0] = "none", [1] = "EPERM", [2] = "ENOENT", [4] = "EINTR", [5] = "EIO", [6] = "ENXIO",
  [7] = "E2BIG", [9] = "EBADF", [11] = "EAGAIN", [12] = "ENOMEM", [13] = "EACCES", [14] = "EFAULT",
  [16] = "EBUSY", [17] = "EEXIST", [19] = "ENODEV", [22] = "EINVAL", [24] = "EMFILE", [25] = "ENOTTY",
  [28] = "ENOSPC", [32] = "EPIPE", [34] = "ERANGE", [35] = "EDEADLK", [38] = "ENOSYS", [61] = "ENODATA",
  [71] = "EPROTO", [75] = "EOVERFLOW", [90] = "EMSGSIZE", [95] = "EOPNOTSUPP", [103] = "ECONNABORTED",
  [104] = "ECONNRESET", [105] = "ENOBUFS", [107] = "ENOTCONN", [110] = "ETIMEDOUT", [125] = "ECANCELED",
}

-- Fields: each is named once, here; `f.count` is what a filter calls vfio_user.count.
local f, all_fields = {}, {}

local function define(key, made)
  f[key] = made
  all_fields[#all_fields + 1] = made
end

local function uint(kind, key, title, form, names)
  define(key, ProtoField[kind]("vfio_user." .. key, title, form or base.DEC, names))
end

-- A field of flags: the whole number, and a yes or no for each bit.
local function flags(key, title, bits, width)
  width = width or 32
  define(key, ProtoField["uint" .. width]("vfio_user." .. key, title, base.HEX))
  local set = { whole = f[key], bits = {} }
  for _, bit in ipairs(bits) do
    local abbreviation = key .. "." .. bit[1]:lower()
    define(abbreviation, ProtoField.bool("vfio_user." .. abbreviation, bit[1], width, nil, bit[2]))
    set.bits[#set.bits + 1] = { name = bit[1], mask = bit[2], field = f[abbreviation] }
  end
  return set
end

uint("uint8", "capture.version", "Capture version")
uint("uint8", "direction", "Direction", base.DEC, { [0] = "client to server", [1] = "server to client" })
uint("uint8", "socket", "Socket", base.DEC, { [0] = "main", [1] = "twin" })
uint("uint8", "continues", "Continues the packet before", base.DEC, { [0] = "no", [1] = "yes" })
uint("uint16", "fds", "Descriptors")
uint("uint16", "connection", "Connection")
uint("uint16", "id", "Message id")
uint("uint16", "command", "Command", base.DEC, COMMANDS)
uint("uint32", "size", "Message size")
define("type", ProtoField.uint32("vfio_user.type", "Type", base.DEC, { [0] = "command", [1] = "reply" }, 0xf))
local HEADER_FLAGS = flags("flags", "Flags", { { "No_reply", NO_REPLY }, { "Error", ERROR } })
uint("uint32", "errno", "Error", base.DEC, ERRNOS)
define("response_in", ProtoField.framenum("vfio_user.response_in", "Reply in", base.NONE, frametype.RESPONSE))
define("request_in", ProtoField.framenum("vfio_user.request_in", "Command in", base.NONE, frametype.REQUEST))
define("time", ProtoField.relative_time("vfio_user.time", "Time since the command"))

uint("uint16", "version.major", "Major")
uint("uint16", "version.minor", "Minor")
define("version.json", ProtoField.string("vfio_user.version.json", "Capabilities"))
uint("uint32", "argsz", "Argsz")
uint("uint64", "address", "Address", base.HEX)
uint("uint64", "length", "Size", base.HEX_DEC)
uint("uint64", "offset", "Offset", base.HEX)
uint("uint64", "count", "Count", base.DEC)
define("data", ProtoField.bytes("vfio_user.data", "Data"))
uint("uint64", "value", "Value", base.HEX)
uint("uint32", "region", "Region", base.DEC, REGIONS)
uint("uint32", "index", "Interrupt index", base.DEC, IRQS)
uint("uint32", "start", "Start")
define("register", ProtoField.string("vfio_user.register", "Register"))

local MAP_FLAGS = flags("map.flags", "Flags", { { "READ", 1 }, { "WRITE", 2 }, { "MMAP", 4 }, { "FILE_IO", 8 } })
local UNMAP_FLAGS = flags("unmap.flags", "Flags", { { "DIRTY_BITMAP", 1 }, { "ALL", 2 } })
uint("uint64", "page_size", "Page size")
uint("uint64", "bitmap_size", "Bitmap size")
define("bitmap", ProtoField.bytes("vfio_user.bitmap", "Dirty bitmap"))

local DEVICE_FLAGS = flags("device.flags", "Flags", { { "RESET", 1 }, { "PCI", 2 } })
uint("uint32", "device.regions", "Regions")
uint("uint32", "device.irqs", "Interrupt indexes")
local REGION_FLAGS = flags("region.flags", "Flags", { { "READ", 1 }, { "WRITE", 2 }, { "MMAP", 4 }, { "CAPS", 8 } })
uint("uint32", "region.cap_offset", "Capabilities at", base.HEX)
uint("uint16", "cap.id", "Capability", base.DEC, CAPABILITIES)
uint("uint16", "cap.version", "Version")
uint("uint32", "cap.next", "Next at", base.HEX)
uint("uint32", "cap.areas", "Areas")
uint("uint32", "cap.type", "Type")
uint("uint32", "cap.subtype", "Subtype")
uint("uint64", "area.offset", "Offset", base.HEX)
uint("uint64", "area.fd_offset", "Offset in the descriptor", base.HEX)
uint("uint64", "area.size", "Size", base.HEX_DEC)
uint("uint32", "io_fd.flags", "Flags", base.HEX)
uint("uint32", "io_fd.index", "Descriptor")
uint("uint32", "io_fd.type", "Type", base.DEC, IO_FD_TYPES)
uint("uint32", "io_fd.shadow_index", "Shadow's descriptor")
uint("uint64", "io_fd.shadow_offset", "Offset in the shadow", base.HEX)
uint("uint64", "io_fd.datamatch", "Datamatch", base.HEX)
local IRQ_FLAGS = flags("irq.flags", "Flags",
  { { "EVENTFD", 1 }, { "MASKABLE", 2 }, { "AUTOMASKED", 4 }, { "NORESIZE", 8 } })
local SET_FLAGS = flags("set_irqs.flags", "Flags", {
  { "DATA_NONE", 1 }, { "DATA_BOOL", 2 }, { "DATA_EVENTFD", 4 }, { "MASK", 8 }, { "UNMASK", 16 }, { "TRIGGER", 32 },
})
define("feature", ProtoField.uint32("vfio_user.feature", "Feature", base.DEC, FEATURES, 0xffff))
local FEATURE_FLAGS = flags("feature.flags", "Flags",
  { { "GET", 0x10000 }, { "SET", 0x20000 }, { "PROBE", 0x40000 } })
local MIGRATION_FLAGS = flags("migration.flags", "Migration",
  { { "STOP_COPY", 1 }, { "P2P", 2 }, { "PRE_COPY", 4 } }, 64)
uint("uint32", "migration.state", "Device state", base.DEC, STATES)
uint("uint32", "migration.data_fd", "Data descriptor, unused", base.HEX)
uint("uint32", "ranges", "Ranges")
uint("uint32", "reserved", "Reserved")

vfio_user.fields = all_fields

local expert_malformed = ProtoExpert.new("vfio_user.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
local expert_error = ProtoExpert.new("vfio_user.error_reply", "Error reply", expert.group.RESPONSE_CODE, expert.severity.NOTE)
local expert_unsolicited = ProtoExpert.new("vfio_user.unsolicited", "Reply without a command",
  expert.group.SEQUENCE, expert.severity.WARN)
local expert_cut = ProtoExpert.new("vfio_user.cut", "Not all of the message was captured",
  expert.group.PROTOCOL, expert.severity.CHAT)
vfio_user.experts = { expert_malformed, expert_error, expert_unsolicited, expert_cut }

-- Without the operators of Lua 5.3, so that Wireshark's Lua 5.2 reads this file too.
local function has(number, mask)
  return math.floor(number / mask) % 2 == 1
end

local function hex(number)
  if type(number) == "number" then
    return string.format("0x%x", number)
  end
  local digits = number:tohex():gsub("^0+", "")
  return "0x" .. (digits == "" and "0" or digits)
end

local function region_name(index)
  return REGIONS[index] or ("region " .. index)
end

local function plural(count, noun)
  return count .. " " .. noun .. (tostring(count) == "1" and "" or "s")
end

-- A cursor walks the payload and adds what it passes to the tree. Where the payload ends early it says so
-- once, and everything after that is nil.
local Cursor = {}
Cursor.__index = Cursor

function Cursor.new(tvb, at, stop, tree)
  return setmetatable({ tvb = tvb, at = at, stop = stop, tree = tree, short = false, info = {} }, Cursor)
end

function Cursor:left()
  return self.short and 0 or self.stop - self.at
end

function Cursor:say(...)
  self.info[#self.info + 1] = string.format(...)
end

function Cursor:malformed(sentence)
  self.short = true
  self.tree:add_proto_expert_info(expert_malformed, sentence)
end

function Cursor:take(count)
  if self.short then
    return nil
  end
  if self.stop - self.at < count then
    self:malformed(string.format("%d bytes are needed here, %d are there", count, self.stop - self.at))
    return nil
  end
  local range = self.tvb(self.at, count)
  self.at = self.at + count
  return range
end

function Cursor:u16(field)
  local range = self:take(2)
  if range then
    self.tree:add_le(field, range)
    return range:le_uint()
  end
end

function Cursor:u32(field)
  local range = self:take(4)
  if range then
    self.tree:add_le(field, range)
    return range:le_uint()
  end
end

function Cursor:u64(field)
  local range = self:take(8)
  if range then
    self.tree:add_le(field, range)
    return range:le_uint64()
  end
end

-- A 32-bit number shown by a field of 64 bits: counts and offsets have one filter for both widths.
function Cursor:u32_as_u64(field)
  local range = self:take(4)
  if range then
    self.tree:add(field, range, UInt64.new(range:le_uint()))
    return range:le_uint()
  end
end

-- Flags: the names of the bits that are set, joined.
function Cursor:flags(set, width)
  local range = self:take(width or 4)
  if not range then
    return nil
  end
  local branch, number = self.tree:add_le(set.whole, range), range(0, 4):le_uint()
  local names = {}
  for _, bit in ipairs(set.bits) do
    branch:add_le(bit.field, range)
    if has(number, bit.mask) then
      names[#names + 1] = bit.name
    end
  end
  if #names > 0 then
    branch:append_text(" (" .. table.concat(names, ", ") .. ")")
  end
  return table.concat(names, "|"), number
end

function Cursor:bytes(field, count)
  local range = count > 0 and self:take(count)
  if range then
    self.tree:add(field, range)
  end
  return range or nil
end

-- Data of an access: short data as the number it is.
function Cursor:data(count)
  if type(count) ~= "number" then
    count = count:tonumber()
  end
  local range = self:bytes(f["data"], count)
  if not range then
    return nil
  end
  if count == 1 or count == 2 or count == 4 or count == 8 then
    local value = range:le_uint64()
    self.tree:add(f["value"], range, value):set_generated()
    return "0x" .. value:tohex():sub(-2 * count)
  end
  return tostring(range(0, math.min(count, 16)):bytes()):lower() .. (count > 16 and "..." or "")
end

-- Runs `inner` with a branch of the tree of its own.
function Cursor:branch(title, inner)
  local outer = self.tree
  local start = self.at
  self.tree = outer:add(vfio_user, self.tvb(start, math.max(self.stop - start, 0)), title)
  inner(self.tree)
  if not self.short then
    self.tree:set_len(self.at - start)
  end
  self.tree = outer
end

-- What each command says: a function for the command, and one for its reply.
local request, reply = {}, {}

local function version(c)
  local major, minor = c:u16(f["version.major"]), c:u16(f["version.minor"])
  if not minor then
    return
  end
  c:say("%d.%d", major, minor)
  local range = c:left() > 0 and c:take(c:left())
  if range then
    local text = range:string():gsub("%c", "") -- its NUL, and what would break a line
    c.tree:add(f["version.json"], range, text)
    c:say("%s", text)
  end
end
request[1], reply[1] = version, version

request[2] = function(c)
  c:u32(f["argsz"])
  local allowed = c:flags(MAP_FLAGS)
  local offset, address, size = c:u64(f["offset"]), c:u64(f["address"]), c:u64(f["length"])
  if size then
    c:say("%s size %s %s", hex(address), hex(size), allowed)
    if c.fds > 0 then
      c:say("at %s of the descriptor", hex(offset))
    end
  end
end

local function dma_unmap(c)
  c:u32(f["argsz"])
  local how, number = c:flags(UNMAP_FLAGS)
  local address, size = c:u64(f["address"]), c:u64(f["length"])
  if not size then
    return
  end
  if how == "ALL" then
    c:say("everything")
  else
    c:say("%s size %s", hex(address), hex(size))
  end
  if has(number, 1) then
    c:u64(f["page_size"])
    c:u64(f["bitmap_size"])
    c:bytes(f["bitmap"], c:left())
    c:say("dirty bitmap")
  end
end
request[3], reply[3] = dma_unmap, dma_unmap

local function device_info(c)
  c:u32(f["argsz"])
  local what = c:flags(DEVICE_FLAGS)
  local regions, irqs = c:u32(f["device.regions"]), c:u32(f["device.irqs"])
  if irqs and c.is_reply then
    c:say("%s, %s, %s", what, plural(regions, "region"), irqs .. " interrupt indexes")
  end
end
request[4], reply[4] = device_info, device_info

local function area(c, with_fds)
  local offset = c:u64(f["area.offset"])
  if with_fds then
    c:u64(f["area.fd_offset"])
  end
  local size = c:u64(f["area.size"])
  if with_fds then
    c:u32(f["io_fd.index"])
    c:u32(f["reserved"])
  end
  if size then
    c:say("mappable %s size %s", hex(offset), hex(size))
  end
end

-- The capabilities of a region: a chain of offsets from the payload's start.
local function region_capabilities(c, at)
  local start, last = PSEUDO_HEADER + HEADER, -1
  while at and at > 0 and not c.short do
    -- A chain that goes back would never end.
    if at <= last or start + at >= c.stop then
      c:malformed("a capability is at " .. at .. ": behind an earlier one, or outside of the message")
      return
    end
    last, c.at = at, start + at
    c:branch("Capability", function(tree)
      local id = c:u16(f["cap.id"])
      c:u16(f["cap.version"])
      at = c:u32(f["cap.next"])
      if id == 1 or id == 16 or id == 0x8001 then
        local count = c:u32(f["cap.areas"])
        c:u32(f["reserved"])
        for number = 1, count or 0 do
          if c.short then
            return
          end
          c:branch("Area " .. number - 1, function()
            area(c, id ~= 1)
          end)
        end
      elseif id == 2 then
        c:u32(f["cap.type"])
        c:u32(f["cap.subtype"])
      end
      tree:append_text(": " .. (CAPABILITIES[id] or tostring(id)))
    end)
  end
end

local function region_info(c)
  c:u32(f["argsz"])
  local what, number = c:flags(REGION_FLAGS)
  local index, capabilities = c:u32(f["region"]), c:u32(f["region.cap_offset"])
  local size, offset = c:u64(f["length"]), c:u64(f["offset"])
  if not offset then
    return
  end
  c:say("%s", region_name(index))
  if c.is_reply then
    c:say("size %s %s", hex(size), what)
    if has(number, 8) then
      region_capabilities(c, capabilities)
    end
  end
end
request[5], reply[5] = region_info, region_info

local function io_fds(c)
  c:u32(f["argsz"])
  c:u32(f["io_fd.flags"])
  local index, count = c:u32(f["region"]), c:u32_as_u64(f["count"])
  if not count then
    return
  end
  c:say("%s", region_name(index))
  if not c.is_reply then
    return
  end
  c:say("%s", plural(count, "sub-region"))
  local left = c:left()
  if count == 0 or left == 0 then
    return
  end
  -- The specification's have 40 bytes, libvfio-user's 48.
  local wide = left / count == 48
  if left / count ~= 40 and not wide then
    c:malformed(left .. " bytes do not hold " .. count .. " sub-regions of 40 or 48 bytes")
    return
  end
  for number = 1, count do
    c:branch("Sub-region " .. number - 1, function()
      local offset, size = c:u64(f["area.offset"]), c:u64(f["area.size"])
      c:u32(f["io_fd.index"])
      local kind = c:u32(f["io_fd.type"])
      c:u32(f["io_fd.flags"])
      if wide then
        c:u32(f["io_fd.shadow_index"])
        c:u64(f["io_fd.shadow_offset"])
      else
        c:u32(f["reserved"])
      end
      c:u64(f["io_fd.datamatch"])
      if not c.short then
        c:say("%s size %s %s", hex(offset), hex(size), IO_FD_TYPES[kind] or "type " .. kind)
      end
    end)
  end
end
request[6], reply[6] = io_fds, io_fds

local function irq_info(c)
  c:u32(f["argsz"])
  local what = c:flags(IRQ_FLAGS)
  local index, count = c:u32(f["index"]), c:u32_as_u64(f["count"])
  if not count then
    return
  end
  c:say("%s", IRQS[index] or "interrupt index " .. index)
  if c.is_reply then
    c:say("%s %s", plural(count, "vector"), what)
  end
end
request[7], reply[7] = irq_info, irq_info

request[8] = function(c)
  c:u32(f["argsz"])
  local what, number = c:flags(SET_FLAGS)
  local index, start, count = c:u32(f["index"]), c:u32(f["start"]), c:u32_as_u64(f["count"])
  if not count then
    return
  end
  c:say("%s", IRQS[index] or "interrupt index " .. index)
  if number == 0x21 and count == 0 then
    c:say("disable")
  elseif number == 0x24 then
    c:say("vectors %d to %d: %s", start, start + count - 1, c.fds > 0 and plural(c.fds, "eventfd") or "no eventfds")
  else
    c:say("vectors %d to %d: %s", start, start + count - 1, what)
  end
  c:bytes(f["data"], c:left())
end

local function access(c)
  local offset, region, count = c:u64(f["offset"]), c:u32(f["region"]), c:u32_as_u64(f["count"])
  if not count then
    return nil
  end
  local register = region == CONFIG and CONFIG_REGISTERS[offset:tonumber()]
  local place = region_name(region) .. "+" .. hex(offset)
  if register then
    c.tree:add(f["register"], register):set_generated()
    place = place .. " " .. register
  end
  return place, count
end

local function region_access(c)
  local place, count = access(c)
  if place then
    c:say("%s %s", place, plural(count, "byte"))
  end
end

local function region_data(c)
  local place, count = access(c)
  if place then
    c:say("%s = %s", place, c:data(count) or "nothing")
  end
end
request[9], reply[9] = region_access, region_data
request[10], reply[10] = region_data, region_access

local function dma_access(c)
  local address, count = c:u64(f["address"]), c:u64(f["count"])
  if count then
    c:say("%s %s", hex(address), plural(tostring(count), "byte"))
  end
end

local function dma_data(c)
  local address = c:u64(f["address"])
  local left = c:left() - 8
  if not address or left < 0 then
    c:take(8)
    return
  end
  -- QEMU 10.1 counts in 32 bits, and ends the message with 4 stray bytes.
  local narrow = c.tvb(c.at, 4):le_uint()
  if c.tvb(c.at, 8):le_uint64():tonumber() == left or narrow ~= left then
    local count = c:u64(f["count"])
    c:say("%s = %s", hex(address), c:data(count) or "nothing")
  else
    local count = c:u32_as_u64(f["count"])
    c:say("%s = %s (laid out as by QEMU 10.1)", hex(address), c:data(count) or "nothing")
  end
end
request[DMA_READ], reply[DMA_READ] = dma_access, dma_data
request[DMA_WRITE] = dma_data
reply[DMA_WRITE] = function(c)
  if c:left() == 12 then -- drafts before 2026 count in 32 bits
    local address, count = c:u64(f["address"]), c:u32_as_u64(f["count"])
    c:say("%s %s", hex(address), plural(count, "byte"))
  else
    dma_access(c)
  end
end

local function dirty_pages(c)
  c:u32(f["argsz"])
  c:u32(f["io_fd.flags"])
  c:bytes(f["data"], c:left())
end
request[14], reply[14] = dirty_pages, dirty_pages

request[15] = function(c)
  local count = c:u64(f["count"])
  if not count then
    return
  end
  c:say("%s", plural(tostring(count), "write"))
  for number = 1, count:tonumber() do
    if c.short then
      return
    end
    c:branch("Write " .. number - 1, function()
      local place, size = access(c)
      if place and size > 8 then
        c:malformed("a write has " .. size .. " bytes, 8 at most")
      elseif place then
        c:say("%s = %s", place, c:data(size) or "nothing")
        c:take(8 - size)
      end
    end)
  end
end
reply[15] = function(c)
  local count = c:u64(f["count"])
  if count then
    c:say("%s done", plural(tostring(count), "write"))
  end
end

local FEATURE_DATA = {
  [1] = function(c)
    local what = c:flags(MIGRATION_FLAGS, 8)
    if what then
      c:say("%s", what)
    end
  end,
  [2] = function(c)
    local state = c:u32(f["migration.state"])
    c:u32(f["migration.data_fd"])
    if state then
      c:say("%s", STATES[state] or "state " .. state)
    end
  end,
  [6] = function(c)
    c:u64(f["page_size"])
    local count = c:u32(f["ranges"])
    c:u32(f["reserved"])
    for number = 1, count or 0 do
      if c.short then
        return
      end
      c:branch("Range " .. number - 1, function()
        local address, size = c:u64(f["address"]), c:u64(f["length"])
        if size then
          c:say("%s size %s", hex(address), hex(size))
        end
      end)
    end
  end,
  [8] = function(c)
    local address, size = c:u64(f["address"]), c:u64(f["length"])
    c:u64(f["page_size"])
    if size then
      c:say("%s size %s", hex(address), hex(size))
    end
    if c:left() > 0 then
      c:bytes(f["bitmap"], c:left())
    end
  end,
}

local function device_feature(c)
  c:u32(f["argsz"])
  local range = c:left() >= 4 and c.tvb(c.at, 4)
  local what, number = c:flags(FEATURE_FLAGS)
  if not range then
    return
  end
  c.tree:add_le(f["feature"], range)
  local feature = number % 0x10000
  c:say("%s %s", what:gsub("|", " "), FEATURES[feature] or "feature " .. feature)
  if c:left() > 0 then
    local decode = FEATURE_DATA[feature]
    if decode then
      decode(c)
    else
      c:bytes(f["data"], c:left())
    end
  end
end
request[16], reply[16] = device_feature, device_feature

local function migration_data(c)
  c:u32(f["argsz"])
  local size = c:u32_as_u64(f["count"])
  if size then
    c:say("%s", plural(size, "byte"))
    c:data(size)
  end
end
request[17] = function(c)
  c:u32(f["argsz"])
  local size = c:u32_as_u64(f["count"])
  if size then
    c:say("up to %s", plural(size, "byte"))
  end
end
reply[17], request[18] = migration_data, migration_data

-- Replies and commands find each other in the first pass: by connection, socket, sender, id and command.
local waiting, partner = {}, {}

function vfio_user.init()
  waiting, partner = {}, {}
end

local function match(pinfo, is_reply, direction, socket, connection, id, command)
  local sender = is_reply and 1 - direction or direction
  local key = table.concat({ connection, socket, sender, id, command }, ":")
  if not is_reply then
    waiting[key] = waiting[key] or {}
    table.insert(waiting[key], { frame = pinfo.number, time = pinfo.rel_ts })
    return
  end
  local first = waiting[key] and table.remove(waiting[key], 1)
  if first then
    partner[pinfo.number] = first
    partner[first.frame] = { frame = pinfo.number }
  end
end

local function show_partner(tree, pinfo, is_reply)
  local other = partner[pinfo.number]
  if not other then
    return false
  end
  if is_reply then
    tree:add(f["request_in"], other.frame):set_generated()
    local passed = pinfo.rel_ts - other.time
    local seconds = math.floor(passed)
    local nanoseconds = math.floor((passed - seconds) * 1e9 + 0.5)
    tree:add(f["time"], NSTime.new(seconds, nanoseconds)):set_generated()
  else
    tree:add(f["response_in"], other.frame):set_generated()
  end
  return true
end

local function pseudo_header(tvb, tree)
  local branch = tree:add(vfio_user, tvb(0, PSEUDO_HEADER), "Capture")
  branch:add(f["capture.version"], tvb(0, 1))
  branch:add(f["direction"], tvb(1, 1))
  branch:add(f["socket"], tvb(2, 1))
  branch:add(f["continues"], tvb(3, 1))
  branch:add_le(f["fds"], tvb(4, 2))
  branch:add_le(f["connection"], tvb(6, 2))
  return tvb(1, 1):uint(), tvb(2, 1):uint(), tvb(3, 1):uint(), tvb(4, 2):le_uint(), tvb(6, 2):le_uint()
end

local function header(tvb, tree)
  local branch = tree:add(vfio_user, tvb(PSEUDO_HEADER, HEADER), "Header")
  local c = Cursor.new(tvb, PSEUDO_HEADER, PSEUDO_HEADER + HEADER, branch)
  local id, command, size = c:u16(f["id"]), c:u16(f["command"]), c:u32(f["size"])
  branch:add_le(f["type"], tvb(c.at, 4))
  local _, number = c:flags(HEADER_FLAGS)
  local errno = c:u32(f["errno"])
  return id, command, size, number, errno
end

local function set_ends(pinfo, direction, socket)
  local client, server = "client", socket == 1 and "server (twin)" or "server"
  pinfo.cols.src = direction == 0 and client or server
  pinfo.cols.dst = direction == 0 and server or client
end

function vfio_user.dissector(tvb, pinfo, root)
  pinfo.cols.protocol = "vfio-user"
  local tree = root:add(vfio_user, tvb())
  if tvb:len() < PSEUDO_HEADER then
    tree:add_proto_expert_info(expert_malformed, "the pseudo-header of a capture has 8 bytes")
    return tvb:len()
  end
  local direction, socket, continues, fds, connection = pseudo_header(tvb, tree)
  set_ends(pinfo, direction, socket)
  if continues == 1 then
    pinfo.cols.info = "the message of the packet before, continued"
    return tvb:len()
  end
  local length = tvb:reported_len() - PSEUDO_HEADER
  if tvb:len() < PSEUDO_HEADER + HEADER then
    tree:add_proto_expert_info(expert_malformed, "a header has 16 bytes, here are " .. length)
    pinfo.cols.info = "no header: " .. plural(length, "byte")
    return tvb:len()
  end

  local id, command, size, number, errno = header(tvb, tree)
  local name = COMMANDS[command] or ("command " .. command)
  local kind = number % 16
  -- The Rust crate's error replies have the type bits of a command.
  local is_reply, is_error = kind == REPLY or has(number, ERROR), has(number, ERROR)
  local words = { name, is_error and "error" or is_reply and "reply" or nil }
  tree:append_text(", " .. table.concat(words, " "))

  if not pinfo.visited and (is_reply or not has(number, NO_REPLY)) then
    match(pinfo, is_reply, direction, socket, connection, id, command)
  end
  local matched = show_partner(tree, pinfo, is_reply)
  if is_reply and not matched then
    tree:add_proto_expert_info(expert_unsolicited, "no command with id " .. id .. " is waiting")
  end

  local whole = size == length or tvb:reported_len() == PIECE
  if tvb:len() < tvb:reported_len() or tvb:reported_len() == PIECE then
    tree:add_proto_expert_info(expert_cut, "only the first bytes of the message are in this packet")
  end
  if kind > REPLY then
    tree:add_proto_expert_info(expert_malformed, "the type is neither a command's nor a reply's")
    words[#words + 1] = "[type " .. kind .. "]"
  elseif not whole then
    local sentence = string.format("the header announces %d bytes, the message has %d", size, length)
    tree:add_proto_expert_info(expert_malformed, sentence)
    words[#words + 1] = "[" .. sentence .. "]"
  elseif is_error then
    local said = errno == 0 and "without a number" or ERRNOS[errno] or ("errno " .. errno)
    tree:add_proto_expert_info(expert_error, name .. " failed: " .. said)
    words[#words + 1] = said
  else
    local decode = (is_reply and reply or request)[command]
    local bare = is_reply and length == HEADER
    local branch = not bare and length > HEADER and tree:add(vfio_user, tvb(PSEUDO_HEADER + HEADER), "Payload")
    if not COMMANDS[command] then
      tree:add_proto_expert_info(expert_malformed, "there is no command " .. command)
    elseif decode and not bare then
      local c = Cursor.new(tvb, PSEUDO_HEADER + HEADER, tvb:len(), branch or tree)
      c.is_reply, c.fds = is_reply, fds
      -- What was cut off when it was captured is no fault of the message's.
      if tvb:len() < tvb:reported_len() or tvb:reported_len() == PIECE then
        c.malformed = function(cursor)
          cursor.short = true
        end
      end
      decode(c)
      words[#words + 1] = #c.info > 0 and table.concat(c.info, ", ") or nil
      if c.short then
        words[#words + 1] = "[malformed]"
      end
    end
    if not is_reply and COMMANDS[command] and (command == DMA_READ or command == DMA_WRITE) ~= (direction == 1) then
      tree:add_proto_expert_info(expert_malformed, name .. " goes the other way")
    end
  end
  if fds > 0 then
    words[#words + 1] = "[" .. plural(fds, "descriptor") .. "]"
  end
  if has(number, NO_REPLY) then
    words[#words + 1] = "[posted]"
  end
  pinfo.cols.info = table.concat(words, " ")
  return tvb:len()
end

DissectorTable.get("wtap_encap"):add(wtap.USER0, vfio_user)
