/* Pid 1 of the cell: does what the host asks over one virtio-serial port, and nothing else.
 *
 * It runs from the initramfs, loads the few modules that stand in /m/order, and then only answers. The kernel below it
 * parses whatever the image holds; the host believes nothing that comes out of here. */
#include "wire.h"

static u8 request_body[REQUEST_MAX + 1];
static u8 frame_bytes[HEADER_BYTES + FRAME_MAX];
u8 *const frame = frame_bytes + HEADER_BYTES;
static int port = -1;
static u32 current_id;

void *memcpy(void *to, const void *from, u64 count)
{
    void *result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    return result;
}

void *memset(void *to, int value, u64 count)
{
    void *result = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    return result;
}

u64 text_length(const char *text)
{
    u64 length = 0;
    while (text[length])
        length++;
    return length;
}

/* Without its host the agent has nothing to do: the end of pid 1 is a panic, and that the end of the emulator. */
static void die(int status)
{
    for (;;)
        CALL(NR_EXIT, status, 0, 0, 0);
}

static void write_all(const u8 *data, u64 length)
{
    while (length) {
        i64 done = CALL(NR_WRITE, port, data, length, 0);
        if (done <= 0)
            die(1);
        data += done;
        length -= (u64)done;
    }
}

static void read_all(u8 *data, u64 length)
{
    while (length) {
        i64 done = CALL(NR_READ, port, data, length, 0);
        if (done <= 0)
            die(2);
        data += done;
        length -= (u64)done;
    }
}

void put_number(u8 *to, u64 value, u32 bytes)
{
    for (u32 at = 0; at < bytes; at++)
        to[at] = (u8)(value >> (8 * at));
}

static u64 get_number(const u8 *from, u32 bytes)
{
    u64 value = 0;
    for (u32 at = 0; at < bytes; at++)
        value |= (u64)from[at] << (8 * at);
    return value;
}

void send_frame(u16 kind, u32 length)
{
    put_number(frame_bytes, length, 4);
    put_number(frame_bytes + 4, current_id, 4);
    put_number(frame_bytes + 8, kind, 2);
    put_number(frame_bytes + 10, 0, 2);
    write_all(frame_bytes, HEADER_BYTES + length);
}

void send_end(i64 result, u64 value)
{
    put_number(frame, result < 0 ? (u64)-result : 0, 4);
    put_number(frame + 4, value, 8);
    send_frame(KIND_END, 12);
}

int read_request(struct request *into)
{
    u8 header[HEADER_BYTES];
    read_all(header, sizeof header);
    into->length = (u32)get_number(header, 4);
    into->id = current_id = (u32)get_number(header + 4, 4);
    into->operation = (u16)get_number(header + 8, 2);
    into->position = 0;
    into->broken = 0;
    into->body = request_body;
    if (into->length > REQUEST_MAX)
        return 0;
    read_all(request_body, into->length);
    return 1;
}

u64 take_number(struct request *from, u32 bytes)
{
    if (from->length - from->position < bytes) {
        from->broken = 1;
        return 0;
    }
    from->position += bytes;
    return get_number(from->body + from->position - bytes, bytes);
}

/* The text stays in the request's buffer: its length field becomes room for the NUL. */
char *take_text(struct request *from)
{
    u32 length = (u32)take_number(from, 2);
    char *text = (char *)from->body + from->position - 2;
    if (from->broken || from->length - from->position < length) {
        from->broken = 1;
        return "";
    }
    for (u32 at = 0; at < length; at++)
        text[at] = (char)from->body[from->position + at];
    text[length] = 0;
    from->position += length;
    return text;
}

u8 *take_rest(struct request *from, u32 *length)
{
    *length = from->length - from->position;
    return from->body + from->position;
}

static void make_parents(char *path)
{
    for (u64 at = 1; path[at]; at++)
        if (path[at] == '/') {
            path[at] = 0;
            CALL(NR_MKDIR, path, 0700, 0, 0);
            path[at] = '/';
        }
}

static i64 put_file(struct request *from)
{
    u32 mode = (u32)take_number(from, 4), length;
    char *path = take_text(from);
    u8 *data = take_rest(from, &length);
    i64 file;
    if (from->broken)
        return -E_BADMSG;
    make_parents(path);
    file = CALL(NR_OPEN, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode, 0);
    if (file < 0)
        return file;
    while (length) {
        i64 done = CALL(NR_WRITE, file, data, length, 0);
        if (done <= 0) {
            CALL(NR_CLOSE, file, 0, 0, 0);
            return done ? done : -E_INVAL;
        }
        data += done;
        length -= (u32)done;
    }
    return CALL(NR_CLOSE, file, 0, 0, 0);
}

/* Bytes of a device or of a small file of the kernel's, at an absolute path of the agent's own tree. */
static void answer_pread(struct request *from)
{
    u64 offset = take_number(from, 8), wanted = take_number(from, 4);
    char *path = take_text(from);
    i64 file, done = 0;
    if (from->broken) {
        send_end(-E_BADMSG, 0);
        return;
    }
    file = CALL(NR_OPEN, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0, 0);
    while (file >= 0 && wanted) {
        done = CALL(NR_PREAD, file, frame, wanted < FRAME_MAX ? wanted : FRAME_MAX, offset);
        if (done <= 0)
            break;
        send_frame(KIND_DATA, (u32)done);
        offset += (u64)done;
        wanted -= (u64)done;
    }
    if (file >= 0)
        CALL(NR_CLOSE, file, 0, 0, 0);
    send_end(file < 0 ? file : done, 0);
}

static i64 mount_volume(struct request *from)
{
    u64 flags = take_number(from, 8);
    char *source = take_text(from), *target = take_text(from), *type = take_text(from), *data = take_text(from);
    if (from->broken)
        return -E_BADMSG;
    make_parents(target);
    CALL(NR_MKDIR, target, 0700, 0, 0);
    return CALL5(NR_MOUNT, source, target, type, flags, data);
}

/* A program of ours (LVM, md, LUKS): standard input is what the host gave, both outputs come back as one. */
static void answer_run(struct request *from)
{
    static char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DM_DISABLE_UDEV=1", 0};
    char *arguments[33];
    u32 count = (u32)take_number(from, 2), length;
    int in[2], out[2], status = 0;
    i64 child, done;
    if (count == 0 || count > 32)
        from->broken = 1;
    for (u32 at = 0; at < count && !from->broken; at++)
        arguments[at] = take_text(from);
    u8 *data = take_rest(from, &length);
    if (from->broken || length > 60000) { /* what a pipe holds without a reader */
        send_end(-E_BADMSG, 0);
        return;
    }
    arguments[count] = 0;
    done = CALL(NR_PIPE2, in, O_CLOEXEC, 0, 0);
    if (done < 0 || (done = CALL(NR_PIPE2, out, O_CLOEXEC, 0, 0)) < 0) {
        send_end(done, 0);
        return;
    }
    CALL(NR_WRITE, in[1], data, length, 0);
    memset(data, 0, length); /* it may be a key */
    CALL(NR_CLOSE, in[1], 0, 0, 0);
    child = CALL(NR_FORK, 0, 0, 0, 0);
    if (child == 0) {
        CALL(NR_DUP2, in[0], 0, 0, 0);
        CALL(NR_DUP2, out[1], 1, 0, 0);
        CALL(NR_DUP2, out[1], 2, 0, 0);
        done = CALL(NR_EXECVE, arguments[0], arguments, environment, 0);
        CALL(NR_EXIT, 127, 0, 0, 0);
    }
    CALL(NR_CLOSE, in[0], 0, 0, 0);
    CALL(NR_CLOSE, out[1], 0, 0, 0);
    while (child > 0 && (done = CALL(NR_READ, out[0], frame, FRAME_MAX, 0)) > 0)
        send_frame(KIND_DATA, (u32)done);
    CALL(NR_CLOSE, out[0], 0, 0, 0);
    if (child > 0)
        CALL(NR_WAIT4, child, &status, 0, 0);
    send_end(child < 0 ? child : 0, (u64)(u32)status);
}

static void answer_dmesg(void)
{
    i64 done = CALL(NR_SYSLOG, 3, frame, FRAME_MAX, 0); /* SYSLOG_ACTION_READ_ALL: the last messages */
    if (done > 0)
        send_frame(KIND_DATA, (u32)done);
    send_end(done, 0);
}

static void answer(struct request *from)
{
    u32 length;
    u8 *rest;
    char *text;
    switch (from->operation) {
    case OP_LOAD:
        text = take_text(from);
        rest = take_rest(from, &length);
        send_end(from->broken ? -E_BADMSG : CALL(NR_INIT_MODULE, rest, length, text, 0), 0);
        break;
    case OP_PUT: send_end(put_file(from), 0); break;
    case OP_PREAD: answer_pread(from); break;
    case OP_MOUNT: send_end(mount_volume(from), 0); break;
    case OP_UMOUNT:
        text = take_text(from);
        send_end(from->broken ? -E_BADMSG : CALL(NR_UMOUNT, text, 2, 0, 0), 0); /* MNT_DETACH */
        break;
    case OP_RUN: answer_run(from); break;
    case OP_STAT: answer_stat(from); break;
    case OP_LIST: answer_list(from); break;
    case OP_WALK: answer_walk(from); break;
    case OP_READ: answer_read(from); break;
    case OP_DMESG: answer_dmesg(); break;
    default: send_end(-E_INVAL, 0);
    }
}

static void load_module(const char *name)
{
    char path[80] = "/m/";
    u64 length = text_length(name);
    i64 file, size = 0, done;
    if (length > 60)
        return;
    memcpy(path + 3, name, length);
    memcpy(path + 3 + length, ".ko", 4);
    file = CALL(NR_OPEN, path, O_RDONLY | O_CLOEXEC, 0, 0);
    while (file >= 0 && (done = CALL(NR_READ, file, request_body + size, REQUEST_MAX - (u64)size, 0)) > 0)
        size += done;
    CALL(NR_CLOSE, file, 0, 0, 0);
    CALL(NR_INIT_MODULE, request_body, size, "", 0);
}

static void load_modules(void)
{
    static char order[4096];
    i64 file = CALL(NR_OPEN, "/m/order", O_RDONLY | O_CLOEXEC, 0, 0);
    i64 length = CALL(NR_READ, file, order, sizeof order - 1, 0), start = 0;
    CALL(NR_CLOSE, file, 0, 0, 0);
    for (i64 at = 0; at < length; at++)
        if (order[at] == '\n') {
            order[at] = 0;
            load_module(order + start);
            start = at + 1;
        }
}

__attribute__((noreturn, used)) void agent_main(void)
{
    static struct request request;
    static char name[] = "/dev/vport0p1";
    static u64 files[2] = {4096, 4096}, pause[2] = {0, 1000000};
    CALL5(NR_MOUNT, "dev", "/dev", "devtmpfs", 2, 0);
    CALL5(NR_MOUNT, "proc", "/proc", "proc", 14, 0);
    CALL5(NR_MOUNT, "sys", "/sys", "sysfs", 14, 0);
    CALL(NR_PRLIMIT64, 0, 7, files, 0); /* RLIMIT_NOFILE: a walk holds one descriptor per level */
    load_modules();
    /* The driver learns of its port by a message of the device's, after the module has loaded. */
    for (int tries = 0; port < 0 && tries < 5000; tries++) {
        if (tries)
            CALL(NR_NANOSLEEP, pause, 0, 0, 0);
        for (name[10] = '0'; port < 0 && name[10] <= '9'; name[10]++) /* the bus's number among virtio devices */
            port = (int)CALL(NR_OPEN, name, O_RDWR | O_CLOEXEC, 0, 0);
    }
    if (port < 0)
        die(3);
    put_number(frame, PROTOCOL, 4);
    send_frame(KIND_HELLO, 4);
    while (read_request(&request))
        answer(&request);
    die(4);
    __builtin_unreachable();
}

__attribute__((naked, noreturn, used)) void _start(void)
{
    __asm__ volatile("xor %ebp, %ebp\n\tand $-16, %rsp\n\tcall agent_main");
}
