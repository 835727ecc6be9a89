/*
 * A guest of our own for tracing QEMU under KVM where a stock kernel is too slow: a PVH image in 32-bit protected mode.
 * It prints on the first UART, finds virtio devices (MMIO at microvm's fixed addresses, or PCI through the legacy port
 * interface), does block, entropy and network requests with interrupts routed through the I/O APIC, starts a second
 * CPU when there is one, and then does what the command line says: off, reset, hang, or (crash) a triple fault.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__asm__(".section .note.pvh,\"a\",@note\n.long 4,4,18\n.ascii \"Xen\\0\"\n.long start\n.text\n.globl start\n"
        "start: cli\n mov $stack_top,%esp\n push %ebx\n call guest_main\n1: hlt\n jmp 1b\n"
        ".bss\n.align 16\n.skip 16384\nstack_top:\n.text\n");

static void outb(u16 port, u8 value) { __asm__ volatile("outb %0,%1" : : "a"(value), "Nd"(port)); }
static void outw(u16 port, u16 value) { __asm__ volatile("outw %0,%1" : : "a"(value), "Nd"(port)); }
static void outl(u16 port, u32 value) { __asm__ volatile("outl %0,%1" : : "a"(value), "Nd"(port)); }
static u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static u16 inw(u16 port) { u16 v; __asm__ volatile("inw %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static u32 inl(u16 port) { u32 v; __asm__ volatile("inl %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static u32 read32(u32 at) { return *(volatile u32 *)at; }
static void write32(u32 at, u32 value) { *(volatile u32 *)at = value; }

static void put(const char *text) { for (; *text; text++) { while (!(inb(0x3fd) & 0x20)) { } outb(0x3f8, *text); } }
static void put_hex(u32 value) { char t[2] = {0, 0}; for (int s = 28; s >= 0; s -= 4) { t[0] = "0123456789abcdef"[(value >> s) & 15]; put(t); } put(" "); }

#define SIZE 256
struct desc { u64 addr; u32 len; u16 flags, next; };
struct ring { struct desc desc[SIZE]; u16 avail_flags, avail_idx, avail_ring[SIZE], pad; u8 gap[4096]; };
static u8 memory[4][32768] __attribute__((aligned(4096)));
static u8 buffer[65536] __attribute__((aligned(4096)));
static u8 received[16][2048] __attribute__((aligned(4096)));

struct queue { struct desc *desc; volatile u16 *avail, *used; u16 size, seen; u32 number; };
struct device { int pci; u32 base; u32 legacy; u32 id; };

static void queue_place(struct queue *queue, u8 *at, u16 size, u32 number)
{
    queue->desc = (struct desc *)at;
    queue->avail = (u16 *)(at + 16 * size);
    queue->used = (u16 *)(((u32)(queue->avail + 3 + size) + 4095) & ~4095u);
    queue->size = size;
    queue->seen = 0;
    queue->number = number;
}

static void set_status(struct device *d, u32 value) { if (d->pci) outb(d->base + 18, value); else write32(d->base + 0x70, value); }
static void notify(struct device *d, u32 number) { if (d->pci) outw(d->base + 16, number); else write32(d->base + 0x50, number); }

static void begin(struct device *d, u32 refuse)
{
    set_status(d, 0);
    set_status(d, 1);
    set_status(d, 3);
    if (d->pci) { outl(d->base + 4, inl(d->base) & ~refuse); return; }
    write32(d->base + 0x14, 0);
    u32 low = read32(d->base + 0x10) & ~refuse;
    write32(d->base + 0x24, 0);
    write32(d->base + 0x20, low);
    if (d->legacy) { write32(d->base + 0x28, 4096); return; }
    write32(d->base + 0x24, 1);
    write32(d->base + 0x20, 1);
    set_status(d, 11);
}

static void queue_start(struct device *d, struct queue *queue, u8 *at, u32 number)
{
    u16 size;
    if (d->pci) { outw(d->base + 14, number); size = inw(d->base + 12); }
    else { write32(d->base + 0x30, number); size = read32(d->base + 0x34); }
    if (size > SIZE && !d->pci) size = SIZE;
    queue_place(queue, at, size, number);
    if (d->pci) {
        outl(d->base + 8, (u32)at >> 12);
        if (d->pci == 2) { outw(d->base + 20, 0); outw(d->base + 22, 0); }
        return;
    }
    write32(d->base + 0x38, size);
    if (d->legacy) { write32(d->base + 0x3c, 4096); write32(d->base + 0x40, (u32)at >> 12); return; }
    write32(d->base + 0x80, (u32)queue->desc); write32(d->base + 0x84, 0);
    write32(d->base + 0x90, (u32)queue->avail); write32(d->base + 0x94, 0);
    write32(d->base + 0xa0, (u32)queue->used); write32(d->base + 0xa4, 0);
    write32(d->base + 0x44, 1);
}

static void offer(struct queue *queue, u16 head)
{
    queue->avail[2 + queue->avail[1] % queue->size] = head;
    __sync_synchronize();
    queue->avail[1]++;
}

static int wait_used(struct queue *queue)
{
    for (u32 i = 0; i < 3000000; i++)
        if (queue->used[1] != queue->seen) { queue->seen++; return 1; }
    return 0;
}

static void describe(struct queue *queue, u16 at, void *data, u32 len, u16 flags)
{
    queue->desc[at] = (struct desc){(u32)data, len, flags, (u16)(at + 1)};
}

static void block(struct device *d)
{
    static struct { u32 type, prio; u64 sector; } head;
    static struct { u64 sector; u32 count, flags; } range;
    static u8 status;
    static const u32 kinds[] = {1, 0, 1, 4, 11, 13, 8, 0, 1, 4};
    struct queue queue;
    begin(d, 0x30000000u | (1u << 12));
    queue_start(d, &queue, memory[0], 0);
    set_status(d, d->legacy || d->pci ? 7 : 15);
    for (u32 i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        u32 type = kinds[i];
        head.type = type;
        head.sector = type == 11 || type == 13 ? 0 : i * 128;
        range.sector = 2048; range.count = 2048; range.flags = 0;
        status = 0xff;
        describe(&queue, 0, &head, 16, 1);
        u16 last = 1;
        if (type == 11 || type == 13) describe(&queue, last++, &range, 16, 1);
        else if (type != 4) describe(&queue, last++, buffer, type == 8 ? 20 : 65536, type == 1 ? 1 : 3);
        describe(&queue, last, &status, 1, 2);
        offer(&queue, 0);
        notify(d, 0);
        put("blk "); put_hex(type); put(wait_used(&queue) ? "ok " : "TIMEOUT "); put_hex(status); put("\n");
    }
}

static void entropy(struct device *d)
{
    struct queue queue;
    begin(d, 0x30000000u);
    queue_start(d, &queue, memory[1], 0);
    set_status(d, d->legacy || d->pci ? 7 : 15);
    for (int i = 0; i < 3; i++) {
        describe(&queue, 0, buffer, 4096, 2);
        offer(&queue, 0);
        notify(d, 0);
        put(wait_used(&queue) ? "rng ok\n" : "rng TIMEOUT\n");
    }
}

static void network(struct device *d)
{
    struct queue receive, send;
    begin(d, 0xffffffffu & ~(1u << 5));
    queue_start(d, &receive, memory[2], 0);
    queue_start(d, &send, memory[3], 1);
    for (u16 i = 0; i < 16; i++) { describe(&receive, i, received[i], 2048, 2); offer(&receive, i); }
    set_status(d, d->legacy || d->pci ? 7 : 15);
    notify(d, 0);
    u32 head = d->legacy || d->pci ? 10 : 12;
    static const u8 arp[42] = {255, 255, 255, 255, 255, 255, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1,
                               0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 9, 8, 2, 0, 0, 0, 0, 0, 0, 10, 9, 8, 1};
    for (u32 i = 0; i < head + 60; i++) buffer[i] = i < head || i >= head + 42 ? 0 : arp[i - head];
    for (int i = 0; i < 5; i++) {
        describe(&send, 0, buffer, head + 60, 0);
        offer(&send, 0);
        notify(d, 1);
        put(wait_used(&send) ? "sent " : "send TIMEOUT ");
        put(wait_used(&receive) ? "received\n" : "receive TIMEOUT\n");
    }
}

static u32 pci_read(u32 config, u32 at) { outl(0xcf8, config | at); return inl(0xcfc); }
static void pci_write(u32 config, u32 at, u32 value) { outl(0xcf8, config | at); outl(0xcfc, value); }

/* Route every interrupt of a PCI function to MSI-X vector 0, unmasked. */
static void message_interrupts(u32 config, struct device *d)
{
    for (u32 at = pci_read(config, 0x34) & 0xfc; at; at = pci_read(config, at) >> 8 & 0xfc) {
        u32 head = pci_read(config, at);
        if ((head & 0xff) != 0x11) continue;
        u32 place = pci_read(config, at + 4);
        u32 table = (pci_read(config, 0x10 + 4 * (place & 7)) & ~15u) + (place & ~7u);
        pci_write(config, at, head | 0x80000000u);
        for (u32 i = 0; i <= (head >> 16 & 0x7ff); i++) {
            write32(table + 16 * i, 0xfee00000); write32(table + 16 * i + 4, 0);
            write32(table + 16 * i + 8, 0x41); write32(table + 16 * i + 12, 0);
        }
        d->pci = 2;
    }
}

static void attend(struct device *d)
{
    put("device "); put_hex(d->id); put_hex(d->base); put("\n");
    if (d->id == 2) block(d);
    if (d->id == 4) entropy(d);
    if (d->id == 1) network(d);
}

static void interrupts(void)
{
    write32(0xfee000f0, 0x1ff);
    for (u32 i = 0; i < 24; i++) {
        write32(0xfec00000, 0x11 + 2 * i); write32(0xfec00010, 0);
        write32(0xfec00000, 0x10 + 2 * i); write32(0xfec00010, 0x30 + i);
        write32(0xfec10000, 0x11 + 2 * i); write32(0xfec10010, 0);
        write32(0xfec10000, 0x10 + 2 * i); write32(0xfec10010, 0x50 + i);
    }
    outb(0x43, 0x34); outb(0x40, 0x9c); outb(0x40, 0x2e);
}

static void second_cpu(void)
{
    *(volatile u32 *)0x8000 = 0xfdebf4fa;
    write32(0xfee00310, 0x01000000); write32(0xfee00300, 0x4500);
    for (volatile int i = 0; i < 10000; i++) { }
    write32(0xfee00310, 0x01000000); write32(0xfee00300, 0x4608);
    for (volatile int i = 0; i < 10000; i++) { }
}

static void wait_for_ever(void) { for (;;) __asm__ volatile("hlt"); }

void guest_main(u32 *info)
{
    const char *line = (const char *)info[6];
    outb(0x3f9, 0);
    put("TRACE-READY\n");
    interrupts();
    second_cpu();
    outb(0x3f9, 2);
    int found = 0;
    for (u32 i = 0; i < 24; i++) {
        u32 base = 0xfeb00000 + i * 512;
        if (read32(base) != 0x74726976 || !read32(base + 8)) continue;
        struct device d = {0, base, read32(base + 4) == 1, read32(base + 8)};
        attend(&d);
        found++;
    }
    for (u32 slot = 0; slot < 32 && !found; slot++) {
        u32 config = 0x80000000u | slot << 11;
        u32 id = pci_read(config, 0);
        if ((id & 0xffff) != 0x1af4 || id >> 16 < 0x1000 || id >> 16 > 0x1005) continue;
        pci_write(config, 4, pci_read(config, 4) | 7);
        u32 kind = (id >> 16) - 0x1000;
        struct device d = {1, pci_read(config, 0x10) & ~3u, 1, kind == 0 ? 1 : kind == 1 ? 2 : kind == 5 ? 4 : 0};
        message_interrupts(config, &d);
        attend(&d);
    }
    put("TRACE-DONE\n");
    for (; *line; line++) {
        if (line[0] == 'h' && line[1] == 'a' && line[2] == 'n') wait_for_ever();
        if (line[0] == 'r' && line[1] == 'e' && line[2] == 's') { *(volatile u8 *)0xfea00202 = 0x42; outb(0xcf9, 6); wait_for_ever(); }
        if (line[0] == 'o' && line[1] == 'f' && line[2] == 'f') { *(volatile u8 *)0xfea00200 = 0x34; outw(0x604, 0x2000); wait_for_ever(); }
    }
    struct { u16 limit; u32 base; } __attribute__((packed)) none = {0, 0};
    __asm__ volatile("lidt %0; int3" : : "m"(none));
}
