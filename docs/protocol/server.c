/*
 * The smallest vfio-user server that QEMU and Linux take for a PCI device.
 *
 *     cc -O2 -fno-strict-aliasing -o smallest server.c && ./smallest /tmp/device.sock
 *
 * BAR0:  0x00  rw  what was written, inverted
 *        0x08  w   an address: 4 bytes of guest memory there are inverted, then INTx goes up
 *        0x10  r   1 while INTx is up; reading takes it down
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { VERSION = 1, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO,
       SET_IRQS, REGION_READ, REGION_WRITE, RESET = 13, WRITE_MULTI = 15 };
enum { NO_REPLY = 0x10, ERROR = 0x21, BAR0 = 0, CONFIG = 7, REGIONS = 9, IRQS = 5, MAPS = 4096 };

struct header { uint16_t id, command; uint32_t size, flags, error; };
struct dma { uint32_t argsz, flags; uint64_t offset, address, size; };
struct unmap { uint32_t argsz, flags; uint64_t address, size; };
struct info { uint32_t argsz, flags, a, b; };
struct region { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct irqs { uint32_t argsz, flags, index, start, count; };
struct access { uint64_t offset; uint32_t region, count; uint8_t data[]; };
struct multi { uint64_t count; struct { uint64_t offset; uint32_t region, count; uint8_t data[8]; } each[]; };

static struct { struct header h; _Alignas(8) uint8_t body[1 << 20 | 4096]; } in, out;
static int fds[253], nfds;                       /* what came with the message */
static struct { struct dma range; uint8_t *base, *at; size_t length; } maps[MAPS];
static uint8_t config[256], first[256];
static uint32_t inverted;
static int line, masked, intx = -1;              /* the line, whether it waits for an unmask, its eventfd */

static const uint64_t region_size[REGIONS] = { [BAR0] = 4096, [CONFIG] = 256 };
static const uint32_t irq_count[IRQS] = { 1, 0, 0, 0, 0 };

static void close_fds(void) { while (nfds) close(fds[--nfds]); }

/* Exactly n bytes. No read goes beyond the message, so every descriptor that comes is this message's. */
static int take(int s, void *to, size_t n) {
    char control[CMSG_SPACE(sizeof fds)];
    while (n) {
        struct iovec iov = { to, n };
        struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
        ssize_t got = recvmsg(s, &m, MSG_CMSG_CLOEXEC);
        if (got <= 0) return -1;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
            int *fd = (int *)CMSG_DATA(c), count = (c->cmsg_len - CMSG_LEN(0)) / sizeof *fd;
            for (int i = 0; i < count; i++)
                if (nfds < 253) fds[nfds++] = fd[i]; else close(fd[i]);
        }
        to = (char *)to + got, n -= got;
    }
    return 0;
}

/* One message, one send, as far as the socket takes it. */
static int give(int s, size_t size) {
    for (size_t at = 0; at < size;) {
        ssize_t sent = send(s, (char *)&out + at, size - at, MSG_NOSIGNAL);
        if (sent < 0) return -1;
        at += sent;
    }
    return 0;
}

static void fire(int event) {                    /* it is the client's: it may be full, or no eventfd at all */
    uint64_t one = 1;
    struct pollfd room = { event, POLLOUT, 0 };
    if (event >= 0 && poll(&room, 1, 0) == 1 && room.revents == POLLOUT && write(event, &one, sizeof one) < 0)
        perror("eventfd");
}

static void signal_line(void) {
    if (line && !masked && intx >= 0) masked = 1, fire(intx);      /* it masks itself: once for each unmask */
}

static void *memory(uint64_t address, uint64_t size, uint32_t right) {
    for (int i = 0; i < MAPS; i++) {
        struct dma *r = &maps[i].range;
        if (maps[i].at && (r->flags & right) == right && address >= r->address && size <= r->size
            && address - r->address <= r->size - size)
            return maps[i].at + (address - r->address);
    }
    return NULL;
}

static int map(const struct dma *d) {
    struct stat file;
    uint64_t page = sysconf(_SC_PAGESIZE), skip = d->offset % page;
    int free_slot = -1;
    if (d->argsz < 32 || !d->size || d->address + d->size < d->address || nfds > 1 || d->flags & ~3u) return EINVAL;
    for (int i = 0; i < MAPS; i++) {
        struct dma *r = &maps[i].range;
        if (!r->size) free_slot = i;
        else if (d->address < r->address + r->size && r->address < d->address + d->size) return EEXIST;
    }
    if (free_slot < 0) return ENOSPC;
    if (nfds) {                                  /* without a descriptor it is noted, and never reached */
        if (fstat(fds[0], &file) || d->offset + d->size < d->offset || (uint64_t)file.st_size < d->offset + d->size)
            return EINVAL;
        int right = (d->flags & 1 ? PROT_READ : 0) | (d->flags & 2 ? PROT_WRITE : 0);
        void *base = mmap(NULL, d->size + skip, right, MAP_SHARED, fds[0], d->offset - skip);
        if (base == MAP_FAILED) return errno;
        maps[free_slot].base = base, maps[free_slot].at = maps[free_slot].base + skip;
        maps[free_slot].length = d->size + skip;
    }
    maps[free_slot].range = *d;
    return 0;
}

static int unmap(uint64_t address, uint64_t size, int all) {
    int found = all;
    for (int i = 0; i < MAPS; i++)
        if (maps[i].range.size && (all || (maps[i].range.address == address && maps[i].range.size == size))) {
            if (maps[i].base) munmap(maps[i].base, maps[i].length);
            memset(&maps[i], 0, sizeof maps[i]), found = 1;
        }
    return found ? 0 : ENOENT;
}

static void reset(void) {
    memcpy(config, first, sizeof config);
    inverted = 0, line = 0, masked = 0;
}

static void write_config(uint32_t at, uint8_t value) {
    static const uint8_t writable[256] = { [4] = 0x07, [5] = 0x04, [0x11] = 0xf0, [0x12] = 0xff, [0x13] = 0xff, [0x3c] = 0xff };
    config[at] = (config[at] & ~writable[at]) | (value & writable[at]);
}

static void write_register(uint64_t at, const uint8_t *data, uint32_t count) {
    uint64_t value = 0;
    memcpy(&value, data, count < 8 ? count : 8);
    if (at == 0x00) inverted = ~value;
    if (at == 0x08 && config[4] & 4) {           /* bus master */
        uint32_t *word = memory(value, 4, 3), content;
        if (!word) return;
        memcpy(&content, word, 4), content = ~content, memcpy(word, &content, 4);
        line = 1, signal_line();
    }
}

static void read_register(uint64_t at, uint8_t *data, uint32_t count) {
    uint32_t value = at == 0x00 ? inverted : at == 0x10 ? (uint32_t)line : 0;
    memset(data, 0, count), memcpy(data, &value, count < 4 ? count : 4);
    if (at == 0x10) line = 0;
}

static int outside(uint32_t region, uint64_t offset, uint32_t count) {
    return region >= REGIONS || count > 1 << 20 || offset > region_size[region] || count > region_size[region] - offset;
}

static void store(uint32_t region, uint64_t offset, const uint8_t *data, uint32_t count) {
    for (uint32_t n = 0; region == CONFIG && n < count; n++) write_config(offset + n, data[n]);
    if (region == BAR0 && count) write_register(offset, data, count);
}

static int set_irqs(const struct irqs *q, size_t size) {
    int data = q->flags & 7, action = q->flags & 0x38;
    if (q->argsz < 20 || q->index >= IRQS || __builtin_popcount(data) != 1 || __builtin_popcount(action) != 1
        || q->flags & ~0x3fu || size != 20 + (data == 2 ? q->count : 0))
        return EINVAL;
    if (data == 1 && action == 0x20 && !q->start && !q->count) {   /* the whole index is off */
        if (q->index == 0 && intx >= 0) close(intx), intx = -1;
        return nfds ? EINVAL : 0;
    }
    if (!q->count || q->start >= irq_count[q->index] || q->count > irq_count[q->index] - q->start) return EINVAL;
    if (data == 4 ? nfds > (int)q->count : nfds > 0) return EINVAL;
    if (data == 4 && action != 0x20) return EINVAL;                 /* no unmask by eventfd here */
    if (data == 4) {
        if (intx >= 0) close(intx);
        intx = nfds ? fds[--nfds] : -1, masked = 0;
    } else if (data == 1 || ((const uint8_t *)(q + 1))[0]) {
        if (action == 0x20) fire(intx);
        if (action == 0x08) masked = 1;
        if (action == 0x10) masked = 0;
    }
    signal_line();
    return 0;
}

/* Carries out the command in `in`; the reply's payload is in `out`, its size in *reply. Returns an errno, or 0. */
static int handle(size_t size, size_t *reply) {
    static const char json[] =
        "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"max_dma_maps\":4096,\"pgsizes\":4096}}";
    struct info *i = (void *)in.body, *oi = (void *)out.body;
    struct region *r = (void *)in.body, *described = (void *)out.body;
    struct access *a = (void *)in.body, *oa = (void *)out.body;
    struct unmap *u = (void *)in.body;
    struct multi *m = (void *)in.body;
    *reply = 0;
    switch (in.h.command) {
    case DMA_MAP: return size < sizeof(struct dma) ? EINVAL : map((void *)in.body);
    case DMA_UNMAP:
        if (size < sizeof *u || u->argsz < 24 || u->flags & ~2u || (u->flags && (u->address || u->size))) return EINVAL;
        *reply = sizeof *u, memcpy(out.body, u, sizeof *u);
        return unmap(u->address, u->size, u->flags == 2);
    case GET_INFO:
        if (size < 16 || i->argsz < 16) return EINVAL;
        *reply = 16, *oi = (struct info){ 16, 3, REGIONS, IRQS };
        return 0;
    case GET_REGION_INFO:
        if (size < 32 || r->argsz < 32 || r->index >= REGIONS) return EINVAL;
        *reply = 32;
        *described = (struct region){ 32, region_size[r->index] ? 3 : 0, r->index, 0, region_size[r->index], 0 };
        return 0;
    case GET_IRQ_INFO:                           /* argsz, flags, index, count */
        if (size < 16 || i->argsz < 16 || i->a >= IRQS) return EINVAL;
        *reply = 16, *oi = (struct info){ 16, i->a ? 1 : 7, i->a, irq_count[i->a] };
        return 0;
    case SET_IRQS: return size < sizeof(struct irqs) ? EINVAL : set_irqs((void *)in.body, size);
    case REGION_READ:
    case REGION_WRITE:
        if (size < 16 || outside(a->region, a->offset, a->count)) return EINVAL;
        *oa = (struct access){ a->offset, a->region, a->count };
        *reply = 16;
        if (in.h.command == REGION_READ) {
            if (size != 16) return EINVAL;
            *reply += a->count;
            if (a->region == CONFIG) memcpy(oa->data, config + a->offset, a->count);
            else if (a->count) read_register(a->offset, oa->data, a->count);
            return 0;
        }
        if (size != 16 + a->count) return EINVAL;
        store(a->region, a->offset, a->data, a->count);
        return 0;
    case WRITE_MULTI:                            /* all are looked at before the first is done */
        if (size < 8 || m->count > size || size != 8 + 24 * m->count) return EINVAL;
        for (uint64_t n = 0; n < m->count; n++)
            if (m->each[n].count > 8 || outside(m->each[n].region, m->each[n].offset, m->each[n].count)) return EINVAL;
        for (uint64_t n = 0; n < m->count; n++)
            store(m->each[n].region, m->each[n].offset, m->each[n].data, m->each[n].count);
        *reply = 8, memcpy(out.body, in.body, 8);
        return 0;
    case RESET: reset(); return size ? EINVAL : 0;
    case VERSION:                                /* handled once, by serve() */
        if (size < 4 || ((uint16_t *)in.body)[0] != 0) return EINVAL;
        memcpy(out.body, in.body, 4);            /* 0, and the client's minor, which is at most ours: */
        if (((uint16_t *)out.body)[1] > 1) ((uint16_t *)out.body)[1] = 1;
        memcpy(out.body + 4, json, sizeof json), *reply = 4 + sizeof json;
        return 0;
    }
    return EINVAL;
}

static void serve(int s) {
    for (int open = 0; !take(s, &in.h, sizeof in.h);) {
        size_t size = in.h.size - sizeof in.h, reply = 0;
        if (in.h.size < sizeof in.h || size > sizeof in.body || take(s, in.body, size)) break;
        int refused = EINVAL;
        if ((in.h.flags & 0xf) == 0 && (in.h.command == VERSION) == !open) refused = handle(size, &reply);
        close_fds();
        if ((in.h.flags & 0xf) == 0 && !(in.h.flags & NO_REPLY)) {
            if (refused) reply = 0;
            out.h = (struct header){ in.h.id, in.h.command, sizeof out.h + reply, refused ? ERROR : 1, refused };
            if (give(s, sizeof out.h + reply)) break;
        }
        if (!open && refused) break;             /* without a version nothing can follow */
        open = 1;
    }
    close_fds();
    unmap(0, 0, 1);
    if (intx >= 0) close(intx);
    intx = -1, masked = 0;                       /* the registers stay as they are */
}

int main(int argc, char **argv) {
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    if (argc != 2 || strlen(argv[1]) >= sizeof name.sun_path) return fprintf(stderr, "usage: smallest SOCKET\n"), 2;
    static const uint8_t start[] = { 0x34, 0x12, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0xff };
    memcpy(first, start, sizeof start), first[0x3d] = 1;      /* 1234:0002, no class, pin A */
    reset();
    signal(SIGPIPE, SIG_IGN);
    strcpy(name.sun_path, argv[1]), unlink(argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (void *)&name, sizeof name) || listen(listener, 1)) return perror(argv[1]), 1;
    for (;;) {
        int s = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (s >= 0) serve(s), close(s);
    }
}
