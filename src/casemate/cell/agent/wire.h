/* The agent's end of the protocol (cell/wire.py is the host's; both numbers and layouts must agree).
 *
 *   host -> guest   u32 length, u32 id, u16 operation, u16 0, then `length` bytes
 *   guest -> host   u32 length, u32 id, u16 kind,      u16 0, then `length` bytes
 *
 * One request at a time. An answer is any number of DATA, ENTRIES, CONTENT and PROBLEM frames and exactly one END.
 * Integers are little endian; a text is u16 length and bytes. */
#ifndef CASEMATE_WIRE_H
#define CASEMATE_WIRE_H

#include "system.h"

enum { OP_LOAD = 1, OP_PUT, OP_PREAD, OP_MOUNT, OP_UMOUNT, OP_RUN, OP_STAT, OP_LIST, OP_WALK, OP_READ, OP_DMESG };
enum { KIND_HELLO = 1, KIND_DATA, KIND_ENTRIES, KIND_CONTENT, KIND_CONTENT_END, KIND_END };

#define PROTOCOL 1u
#define HEADER_BYTES 12u
#define REQUEST_MAX (24u << 20)
#define FRAME_MAX (256u << 10)
#define ENTRY_FIXED 52u
#define PATH_MAX_BYTES 16384u
#define NAME_MAX_BYTES 4096u
#define DEPTH_MAX 256

struct request {
    u32 id, length, position;
    u16 operation;
    int broken;
    u8 *body;
};

/* What was asked: each takes the next field; past the end the request is broken and they give 0 or "". */
u64 take_number(struct request *from, u32 bytes);
char *take_text(struct request *from);
u8 *take_rest(struct request *from, u32 *length);

/* The answer. FRAME is the payload under construction, with room for its header in front. */
extern u8 *const frame;
void put_number(u8 *to, u64 value, u32 bytes);
void send_frame(u16 kind, u32 length);
void send_end(i64 result, u64 value);
int read_request(struct request *into);

/* walk.c */
void answer_list(struct request *from);
void answer_walk(struct request *from);
void answer_stat(struct request *from);
void answer_read(struct request *from);

#endif
