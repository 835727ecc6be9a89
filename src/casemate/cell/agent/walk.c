/* Files of a mounted volume: look, list, walk, read. Every path is resolved inside the volume's root by the kernel
 * (openat2, RESOLVE_IN_ROOT): an absolute link or `..` of the image leads to its own root. */
#include "wire.h"

static u32 filled;         /* bytes of entries in the frame under construction */
static u64 entries_left;   /* of this walk */
static char path[PATH_MAX_BYTES + NAME_MAX_BYTES];

struct entry64 { /* struct linux_dirent64 */
    u64 ino;
    i64 offset;
    u16 length;
    u8 type;
    char name[];
};

static i64 open_inside(const char *root, const char *name, u64 flags)
{
    struct open_how how = {flags | O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    i64 base = CALL(NR_OPEN, root, O_PATH | O_DIRECTORY | O_CLOEXEC, 0, 0), found;
    if (base < 0)
        return base;
    found = CALL(NR_OPENAT2, base, name[0] ? name : ".", &how, sizeof how);
    CALL(NR_CLOSE, base, 0, 0, 0);
    return found;
}

static void flush(void)
{
    if (filled)
        send_frame(KIND_ENTRIES, filled);
    filled = 0;
}

/* One entry, laid out as in wire.py; a link's target is read through `directory` and `name`. */
static void add_entry(const struct stat *info, i64 error, const char *name, u64 length, int directory, const char *leaf)
{
    static char target[NAME_MAX_BYTES];
    i64 linked = 0;
    u8 *to;
    if (!error && (info->mode & S_IFMT) == S_IFLNK) {
        linked = CALL(NR_READLINKAT, directory, leaf, target, sizeof target);
        if (linked < 0) {
            error = linked;
            linked = 0;
        }
    }
    if (filled + ENTRY_FIXED + length + (u64)linked > FRAME_MAX)
        flush();
    to = frame + filled;
    put_number(to, info->mode, 4);
    put_number(to + 4, (u64)-error, 4);
    put_number(to + 8, (u64)info->size, 8);
    put_number(to + 16, info->mtime, 8);
    put_number(to + 24, info->uid, 4);
    put_number(to + 28, info->gid, 4);
    put_number(to + 32, info->nlink, 4);
    put_number(to + 36, info->rdev, 4);
    put_number(to + 40, info->ino, 8);
    put_number(to + 48, length, 2);
    put_number(to + 50, (u64)linked, 2);
    memcpy(to + ENTRY_FIXED, name, length);
    memcpy(to + ENTRY_FIXED + length, target, (u64)linked);
    filled += (u32)(ENTRY_FIXED + length + (u64)linked);
}

static int is_dot(const char *name)
{
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

void answer_stat(struct request *from)
{
    char *root = take_text(from), *name = take_text(from);
    struct stat info = {0};
    i64 file, error;
    if (from->broken) {
        send_end(-E_BADMSG, 0);
        return;
    }
    file = open_inside(root, name, O_PATH | O_NOFOLLOW);
    error = file < 0 ? file : CALL(NR_NEWFSTATAT, file, "", &info, AT_EMPTY_PATH);
    filled = 0;
    if (!error) {
        add_entry(&info, 0, name, text_length(name), (int)file, "");
        flush();
    }
    if (file >= 0)
        CALL(NR_CLOSE, file, 0, 0, 0);
    send_end(error, 0);
}

/* The first `limit` bytes of a regular file as CONTENT frames; the entries before them go out first. */
static void send_content(int directory, const char *leaf, u64 limit)
{
    i64 file, done = 0;
    flush();
    file = CALL(NR_OPENAT, directory, leaf, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOATIME, 0);
    while (file >= 0 && limit) {
        done = CALL(NR_READ, file, frame, limit < FRAME_MAX ? limit : FRAME_MAX, 0);
        if (done <= 0)
            break;
        send_frame(KIND_CONTENT, (u32)done);
        limit -= (u64)done;
    }
    if (file >= 0)
        CALL(NR_CLOSE, file, 0, 0, 0);
    done = file < 0 ? file : done < 0 ? done : 0;
    put_number(frame, (u64)-done, 4);
    send_frame(KIND_CONTENT_END, 4);
}

/* One directory and, when `depth` allows, what is below it. Gives 0 once the entries are used up. */
static int walk(int directory, u64 length, u32 depth, u64 content_max)
{
    char names[8192];
    for (;;) {
        i64 count = CALL(NR_GETDENTS64, directory, names, sizeof names, 0);
        if (count < 0) {
            struct stat none = {.mode = S_IFDIR};
            add_entry(&none, count, path, length, directory, "");
        }
        if (count <= 0)
            return 1;
        for (i64 at = 0; at < count;) {
            struct entry64 *entry = (struct entry64 *)(names + at);
            u64 name_length = text_length(entry->name), whole = length + (length != 0) + name_length;
            struct stat info = {0};
            i64 error, below;
            at += entry->length;
            if (is_dot(entry->name) || name_length > NAME_MAX_BYTES)
                continue;
            if (entries_left == 0)
                return 0;
            entries_left--;
            if (length)
                path[length] = '/';
            memcpy(path + whole - name_length, entry->name, name_length + 1);
            error = CALL(NR_NEWFSTATAT, directory, entry->name, &info, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT);
            if (!error && whole > PATH_MAX_BYTES)
                error = -E_NAMETOOLONG;
            add_entry(&info, error, path, whole < PATH_MAX_BYTES ? whole : PATH_MAX_BYTES, directory, entry->name);
            if (error)
                continue;
            if (content_max && (info.mode & S_IFMT) == S_IFREG && info.size)
                send_content(directory, entry->name, content_max);
            if (!depth || (info.mode & S_IFMT) != S_IFDIR)
                continue;
            below = CALL(NR_OPENAT, directory, entry->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NOATIME, 0);
            if (depth == 1 && below >= 0) { /* too deep: say so instead of going on */
                CALL(NR_CLOSE, below, 0, 0, 0);
                below = -E_LOOP;
            }
            if (below < 0) {
                add_entry(&info, below, path, whole, directory, "");
                continue;
            }
            int more = walk((int)below, whole, depth - 1, content_max);
            CALL(NR_CLOSE, below, 0, 0, 0);
            if (!more)
                return 0;
        }
    }
}

void answer_list(struct request *from)
{
    char *root = take_text(from), *name = take_text(from);
    i64 directory;
    int complete;
    entries_left = take_number(from, 8);
    if (from->broken) {
        send_end(-E_BADMSG, 0);
        return;
    }
    directory = open_inside(root, name, O_RDONLY | O_DIRECTORY | O_NOATIME);
    if (directory < 0) {
        send_end(directory, 0);
        return;
    }
    filled = 0;
    complete = walk((int)directory, 0, 0, 0);
    flush();
    CALL(NR_CLOSE, directory, 0, 0, 0);
    send_end(complete ? 0 : -E_2BIG, 0);
}

void answer_walk(struct request *from)
{
    char *root = take_text(from), *name = take_text(from);
    u64 content_max;
    i64 directory;
    int complete;
    entries_left = take_number(from, 8);
    content_max = take_number(from, 8);
    if (from->broken) {
        send_end(-E_BADMSG, 0);
        return;
    }
    directory = open_inside(root, name, O_RDONLY | O_DIRECTORY | O_NOATIME);
    if (directory < 0) {
        send_end(directory, 0);
        return;
    }
    filled = 0;
    complete = walk((int)directory, 0, DEPTH_MAX, content_max);
    flush();
    CALL(NR_CLOSE, directory, 0, 0, 0);
    send_end(complete ? 0 : -E_2BIG, 0);
}

void answer_read(struct request *from)
{
    char *root = take_text(from), *name = take_text(from);
    u64 offset = take_number(from, 8), limit = take_number(from, 8);
    struct stat info = {0};
    i64 file, done = 0;
    if (from->broken) {
        send_end(-E_BADMSG, 0);
        return;
    }
    file = open_inside(root, name, O_RDONLY | O_NONBLOCK | O_NOATIME);
    done = file < 0 ? file : CALL(NR_NEWFSTATAT, file, "", &info, AT_EMPTY_PATH);
    if (!done && (info.mode & S_IFMT) != S_IFREG)
        done = (info.mode & S_IFMT) == S_IFDIR ? -E_ISDIR : -E_INVAL;
    while (!done && limit) {
        i64 count = CALL(NR_PREAD, file, frame, limit < FRAME_MAX ? limit : FRAME_MAX, offset);
        if (count < 0)
            done = count;
        if (count <= 0)
            break;
        send_frame(KIND_DATA, (u32)count);
        offset += (u64)count;
        limit -= (u64)count;
    }
    if (file >= 0)
        CALL(NR_CLOSE, file, 0, 0, 0);
    send_end(done, (u64)info.size);
}
