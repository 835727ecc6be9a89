/* Ask a key broker for one secret, from inside a guest with a TPM: keyclient [--last] PORT RESOURCE >secret
 *
 * --last extends PCR 8 before the secret is printed: until the next reset no quote shows the state again that was
 * measured, so what runs later in this boot, its root included, gets nothing more.
 *
 * Speaks the protocol of confidential-containers' key broker, version 0.4.0, tee "tpm", as HTTP/1.1 over a virtio-serial
 * port (or any file that is a stream both ways). Meant for an initrd: one static program, no library, no resolver.
 *
 *     key of this attestation   RSA 2048, made by the TPM for this one time; its private half never leaves the TPM
 *     evidence                  quote over PCRs 0 to 23 (SHA-256) by the attestation key at 0x81010002, the PCRs, the
 *                               firmware's event log; its nonce is bound to the broker's nonce and to that key
 *     hashing, decryption       the kernel's (AF_ALG: sha384, gcm(aes)) and the TPM's (RSA-OAEP)
 *
 * The broker, and whoever carries the bytes, may be hostile: every length is checked, every wait ends (alarm). What is
 * printed was encrypted to the TPM's key, and authenticated; nothing says who encrypted it: what opens with the secret
 * has to prove that (a LUKS header's digest does). Source: TPM 2.0 library specification, parts 2 and 3. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_alg.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define TPM "/dev/tpmrm0"
#define EVENT_LOG "/sys/kernel/security/tpm0/binary_bios_measurements"
#ifndef DEADLINE_S
#define DEADLINE_S 120
#endif
enum { AK = 0x81010002, SECRET_MAX = 64 << 10, LOG_MAX = 512 << 10, HTTP_MAX = 256 << 10 };
enum { RH_OWNER = 0x40000001, RS_PW = 0x40000009, ALG_RSA = 1, ALG_SHA256 = 0xb, ALG_NULL = 0x10, ALG_OAEP = 0x17 };

static int port = -1, tpm = -1;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("keyclient: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    _exit(1);
}

static void late(int number)
{
    static const char TEXT[] = "keyclient: no answer in time\n";
    (void)number;
    _exit(write(STDERR_FILENO, TEXT, sizeof TEXT - 1) < 0 ? 2 : 1);
}

/* ---- bytes that grow, within a bound ------------------------------------------------------------------------------ */

struct buffer {
    uint8_t *data;
    size_t used, room;
};

static struct buffer room_for(size_t room)
{
    struct buffer made = { malloc(room + 1), 0, room };
    if (!made.data)
        die("no memory");
    made.data[0] = 0;
    return made;
}

static void put(struct buffer *to, const void *data, size_t count)
{
    if (count > to->room - to->used)
        die("more than %zu bytes", to->room);
    memcpy(to->data + to->used, data, count);
    to->used += count;
    to->data[to->used] = 0;
}

static void put_text(struct buffer *to, const char *text) { put(to, text, strlen(text)); }

static void put_number(struct buffer *to, uint32_t value, int bytes)
{
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
        put(to, &(uint8_t){ (uint8_t)(value >> shift) }, 1);
}

static uint32_t number(const struct buffer *from, size_t at, int bytes)
{
    uint32_t value = 0;
    if (at > from->used || (size_t)bytes > from->used - at)
        die("an answer of the TPM that is cut off");
    for (int index = 0; index < bytes; index++)
        value = value << 8 | from->data[at + (size_t)index];
    return value;
}

/* The bytes behind a length of 16 bits at `at`. */
static const uint8_t *sized(const struct buffer *from, size_t at, size_t *count)
{
    *count = number(from, at, 2);
    if (*count > from->used - at - 2)
        die("an answer of the TPM that is cut off");
    return from->data + at + 2;
}

static const char STANDARD[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char FOR_URLS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void put_base64(struct buffer *to, const uint8_t *data, size_t count, const char *letters)
{
    for (size_t at = 0; at < count; at += 3) {
        uint32_t three = (uint32_t)data[at] << 16;
        size_t left = count - at;
        three |= left > 1 ? (uint32_t)data[at + 1] << 8 : 0;
        three |= left > 2 ? data[at + 2] : 0;
        for (size_t index = 0; index < 4; index++)
            if (index <= left)
                put(to, &letters[three >> (18 - 6 * index) & 63], 1);
            else if (letters == STANDARD)
                put(to, "=", 1);
    }
}

static struct buffer from_base64url(const char *text, size_t room)
{
    struct buffer found = room_for(room);
    uint32_t bits = 0;
    int held = 0;
    for (; *text; text++) {
        const char *letter = strchr(FOR_URLS, *text);
        if (!letter)
            die("the broker's answer is not base64url");
        bits = bits << 6 | (uint32_t)(letter - FOR_URLS);
        held += 6;
        if (held >= 8) {
            held -= 8;
            put(&found, &(uint8_t){ (uint8_t)(bits >> held) }, 1);
        }
    }
    return found;
}

/* ---- the TPM ------------------------------------------------------------------------------------------------------ */

/* One command: handles, an empty password where one is wanted, parameters; the answer's parameters. */
static struct buffer tpm_command(uint32_t code, const uint32_t *handles, int count, int auth, const struct buffer *parameters)
{
    struct buffer command = room_for(4096), answer = room_for(4096);
    put_number(&command, auth ? 0x8002 : 0x8001, 2);
    put_number(&command, (uint32_t)(10 + 4 * count + (auth ? 13 : 0) + (int)parameters->used), 4);
    put_number(&command, code, 4);
    for (int index = 0; index < count; index++)
        put_number(&command, handles[index], 4);
    if (auth) {
        put_number(&command, 9, 4);
        put_number(&command, RS_PW, 4);
        put(&command, "\0\0\0\0\0", 5);
    }
    put(&command, parameters->data, parameters->used);
    for (int tries = 0;; tries++) {
        if (write(tpm, command.data, command.used) != (ssize_t)command.used)
            die("cannot write to %s: %s", TPM, strerror(errno));
        ssize_t got = read(tpm, answer.data, answer.room);
        if (got < 10)
            die("cannot read from %s: %s", TPM, strerror(errno));
        answer.used = (size_t)got;
        uint32_t result = number(&answer, 6, 4);
        if (result == 0)
            return answer;
        if (result != 0x922 || tries == 100) /* TPM_RC_RETRY: it was busy */
            die("the TPM refuses command %#x: %#x", code, result);
        usleep(20000);
    }
}

/* An RSA key that only decrypts, unlike any before: `unique` is random. Its handle; its modulus. */
static uint32_t make_key(uint8_t modulus[256])
{
    struct buffer public = room_for(1024), parameters = room_for(2048);
    uint8_t unique[256];
    if (getrandom(unique, sizeof unique, 0) != sizeof unique)
        die("no random numbers");
    put_number(&public, ALG_RSA, 2);
    put_number(&public, ALG_SHA256, 2);
    put_number(&public, 0x00020072, 4); /* fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, decrypt */
    put_number(&public, 0, 2);
    put_number(&public, ALG_NULL, 2);
    put_number(&public, ALG_OAEP, 2);
    put_number(&public, ALG_SHA256, 2);
    put_number(&public, 2048, 2);
    put_number(&public, 0, 4);
    put_number(&public, sizeof unique, 2);
    put(&public, unique, sizeof unique);
    put_number(&parameters, 4, 2);
    put_number(&parameters, 0, 4);
    put_number(&parameters, (uint32_t)public.used, 2);
    put(&parameters, public.data, public.used);
    put_number(&parameters, 0, 2);
    put_number(&parameters, 0, 4);
    struct buffer answer = tpm_command(0x131, (uint32_t[]){ RH_OWNER }, 1, 1, &parameters);
    size_t count;
    const uint8_t *found = sized(&answer, 18, &count); /* header, handle, parameterSize: TPM2B_PUBLIC */
    if (count < 258 || found[count - 258] != 1 || found[count - 257] != 0)
        die("the TPM made another key than it was asked for");
    memcpy(modulus, found + count - 256, 256);
    return number(&answer, 10, 4);
}

static void put_pcr_selection(struct buffer *to, uint8_t zero, uint8_t one, uint8_t two)
{
    put_number(to, 1, 4);
    put_number(to, ALG_SHA256, 2);
    put(to, (uint8_t[]){ 3, zero, one, two }, 4);
}

static void put_evidence(struct buffer *to, const uint8_t nonce[32])
{
    struct buffer none = room_for(1), parameters = room_for(256), log = room_for(LOG_MAX);
    size_t count;
    struct buffer answer = tpm_command(0x173, (uint32_t[]){ AK }, 1, 0, &none);
    const uint8_t *found = sized(&answer, 10, &count);
    put_text(to, "{\"ak_public\":\"");
    put_base64(to, found, count, STANDARD);

    put_number(&parameters, 32, 2);
    put(&parameters, nonce, 32);
    put_number(&parameters, ALG_NULL, 2); /* the key's own scheme */
    put_pcr_selection(&parameters, 0xff, 0xff, 0xff);
    answer = tpm_command(0x158, (uint32_t[]){ AK }, 1, 1, &parameters);
    uint32_t size = number(&answer, 10, 4);
    found = sized(&answer, 14, &count);
    if (size > answer.used - 14 || count + 2 > size)
        die("a quote that is cut off");
    put_text(to, "\",\"tpm_quote\":{\"message\":\"");
    put_base64(to, found, count, STANDARD);
    put_text(to, "\",\"signature\":\"");
    put_base64(to, found + count, size - 2 - count, STANDARD);
    put_text(to, "\",\"pcrs\":[");
    for (int octet = 0; octet < 3; octet++) {
        parameters.used = 0;
        put_pcr_selection(&parameters, octet == 0 ? 0xff : 0, octet == 1 ? 0xff : 0, octet == 2 ? 0xff : 0);
        answer = tpm_command(0x17e, NULL, 0, 0, &parameters);
        if (number(&answer, 24, 4) != 8) /* header, counter, selection */
            die("the TPM has no PCRs of SHA-256");
        for (size_t at = 28, index = 0; index < 8; index++, at += 34) {
            found = sized(&answer, at, &count);
            if (count != 32)
                die("a PCR of another length");
            put_text(to, octet || index ? ",\"" : "\"");
            for (size_t byte = 0; byte < 32; byte++)
                put(to, (char[]){ "0123456789abcdef"[found[byte] >> 4], "0123456789abcdef"[found[byte] & 15] }, 2);
            put_text(to, "\"");
        }
    }
    put_text(to, "]}");
    int file = open(EVENT_LOG, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        for (ssize_t got; (got = read(file, log.data + log.used, log.room - log.used)) > 0;)
            log.used += (size_t)got;
        close(file);
        put_text(to, ",\"event_log\":\"");
        put_base64(to, log.data, log.used, STANDARD);
        put_text(to, "\"");
    }
    put_text(to, "}");
}

static void write_all(int file, const uint8_t *data, size_t count)
{
    while (count) {
        ssize_t done = write(file, data, count);
        if (done <= 0)
            die("cannot write: %s", strerror(errno));
        data += done;
        count -= (size_t)done;
    }
}

static void extend_last(void)
{
    static const char MARK[] = "casemate keyclient: no more keys";
    _Static_assert(sizeof MARK == 33, "as long as a digest of SHA-256");
    struct buffer parameters = room_for(64);
    put_number(&parameters, 1, 4);
    put_number(&parameters, ALG_SHA256, 2);
    put(&parameters, MARK, 32);
    tpm_command(0x182, (uint32_t[]){ 8 }, 1, 1, &parameters);
}

/* ---- the kernel's cryptography ------------------------------------------------------------------------------------ */

#ifdef HANDED_OVER /* tests, on hosts whose kernel has no AF_ALG: a header with these two functions */
#include HANDED_OVER
#else
static int algorithm(const char *type, const char *name)
{
    struct sockaddr_alg address = { .salg_family = AF_ALG };
    strcpy((char *)address.salg_type, type);
    strcpy((char *)address.salg_name, name);
    int found = socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (found < 0 || bind(found, (struct sockaddr *)&address, sizeof address))
        die("the kernel has no %s (AF_ALG): %s", name, strerror(errno));
    return found;
}

static void sha384(const struct buffer *data, uint8_t digest[48])
{
    int parent = algorithm("hash", "sha384"), work = accept(parent, NULL, NULL);
    if (work < 0 || send(work, data->data, data->used, 0) != (ssize_t)data->used || read(work, digest, 48) != 48)
        die("the kernel does not hash: %s", strerror(errno));
    close(work);
    close(parent);
}

/* AES-256-GCM: the plaintext of what is authentic together with `header`; otherwise the end. */
static struct buffer open_sealed(const struct buffer *key, const struct buffer *iv, const char *header,
                                 const struct buffer *sealed, const struct buffer *tag)
{
    size_t associated = strlen(header);
    if (key->used != 32 || iv->used != 12 || tag->used != 16 || sealed->used > SECRET_MAX)
        die("the broker's answer has parts of another length");
    int parent = algorithm("aead", "gcm(aes)");
    if (setsockopt(parent, SOL_ALG, ALG_SET_KEY, key->data, 32) || setsockopt(parent, SOL_ALG, ALG_SET_AEAD_AUTHSIZE, NULL, 16))
        die("the kernel takes no key: %s", strerror(errno));
    int work = accept(parent, NULL, NULL);
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(4) + CMSG_SPACE(4 + 12) + CMSG_SPACE(4)] = { 0 };
    struct iovec parts[] = {
        { (void *)header, associated },
        { sealed->data, sealed->used },
        { tag->data, 16 },
    };
    struct msghdr message = { .msg_control = control, .msg_controllen = sizeof control, .msg_iov = parts, .msg_iovlen = 3 };
    struct cmsghdr *each = CMSG_FIRSTHDR(&message);
    *each = (struct cmsghdr){ .cmsg_len = CMSG_LEN(4), .cmsg_level = SOL_ALG, .cmsg_type = ALG_SET_OP };
    *(uint32_t *)CMSG_DATA(each) = ALG_OP_DECRYPT;
    each = CMSG_NXTHDR(&message, each);
    *each = (struct cmsghdr){ .cmsg_len = CMSG_LEN(4 + 12), .cmsg_level = SOL_ALG, .cmsg_type = ALG_SET_IV };
    ((struct af_alg_iv *)CMSG_DATA(each))->ivlen = 12;
    memcpy(((struct af_alg_iv *)CMSG_DATA(each))->iv, iv->data, 12);
    each = CMSG_NXTHDR(&message, each);
    *each = (struct cmsghdr){ .cmsg_len = CMSG_LEN(4), .cmsg_level = SOL_ALG, .cmsg_type = ALG_SET_AEAD_ASSOCLEN };
    *(uint32_t *)CMSG_DATA(each) = (uint32_t)associated;
    if (work < 0 || sendmsg(work, &message, 0) != (ssize_t)(associated + sealed->used + 16))
        die("the kernel does not decrypt: %s", strerror(errno));
    struct buffer plain = room_for(associated + sealed->used);
    ssize_t got = read(work, plain.data, plain.room);
    if (got != (ssize_t)plain.room)
        die("what the broker sent is not authentic: %s", strerror(errno));
    plain.used = (size_t)got - associated;
    memmove(plain.data, plain.data + associated, plain.used);
    close(work);
    close(parent);
    return plain;
}
#endif

/* ---- HTTP and JSON, as much as the broker's answers have ----------------------------------------------------------- */

static char cookie[128];

/* The value of a header, up to the end of its line; NULL when there is none. */
static char *header_value(char *head, const char *name)
{
    for (char *line = head; line; line = strstr(line, "\r\n")) {
        line += line == head ? 0 : 2;
        if (!strncasecmp(line, name, strlen(name)))
            return line + strlen(name);
        if (!strncmp(line, "\r\n", 2))
            return NULL;
    }
    return NULL;
}

/* The member's text, in place; JSON of one level, and texts without escapes: all that the protocol has. */
static char *member(const char *json, const char *name)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":\"", name);
    const char *start = strstr(json, quoted);
    if (!start)
        die("the broker's answer has no %s", name);
    start += strlen(quoted);
    size_t length = strcspn(start, "\"\\");
    if (start[length] != '"')
        die("the broker's %s has no end", name);
    char *found = strndup(start, length);
    if (!found)
        die("no memory");
    return found;
}

static char *ask(const char *method, const char *path, const struct buffer *body)
{
    struct buffer request = room_for(body->used + 1024), answer = room_for(HTTP_MAX);
    char head[768];
    snprintf(head, sizeof head, "%s /kbs/v0/%s HTTP/1.1\r\nHost: keys\r\nContent-Length: %zu\r\n%s%s%s%s\r\n", method, path,
             body->used, body->used ? "Content-Type: application/json\r\n" : "", *cookie ? "Cookie: kbs-session-id=" : "",
             cookie, *cookie ? "\r\n" : "");
    put_text(&request, head);
    put(&request, body->data, body->used);
    write_all(port, request.data, request.used);
    char *end = NULL;
    size_t length = 0;
    while (!end || answer.used < (size_t)(end - (char *)answer.data) + 4 + length) {
        if (answer.used == answer.room)
            die("the broker's answer has no end");
        ssize_t got = read(port, answer.data + answer.used, answer.room - answer.used);
        if (got <= 0)
            die("the broker went: %s", got ? strerror(errno) : "end of file");
        answer.used += (size_t)got;
        answer.data[answer.used] = 0;
        if (!end && (end = strstr((char *)answer.data, "\r\n\r\n"))) {
            const char *value = header_value((char *)answer.data, "content-length:");
            length = value ? strtoul(value, NULL, 10) : 0;
            if (length > HTTP_MAX)
                die("the broker's answer is too long");
        }
    }
    char *content = end + 4;
    if (strncmp((char *)answer.data, "HTTP/1.1 200 ", 13))
        die("refused: %.12s: %s", (char *)answer.data, strstr(content, "\"detail\":\"") ? member(content, "detail") : "?");
    end[2] = 0;
    char *given = header_value((char *)answer.data, "set-cookie: kbs-session-id=");
    if (given && strspn(given, "0123456789abcdef") < sizeof cookie) {
        memset(cookie, 0, sizeof cookie);
        memcpy(cookie, given, strspn(given, "0123456789abcdef"));
    }
    return content;
}

/* ---- request, challenge, attestation, response --------------------------------------------------------------------- */

int main(int count, char **words)
{
    int is_last = count == 4 && !strcmp(words[1], "--last");
    if (count != 3 + is_last)
        die("usage: keyclient [--last] PORT REPOSITORY/TYPE/TAG >secret");
    words += is_last;
    signal(SIGALRM, late);
    alarm(DEADLINE_S);
#ifdef HANDED_OVER /* tests: descriptors of a broker and of a TPM that are sockets */
    port = 3, tpm = 4;
#else
    port = open(words[1], O_RDWR | O_CLOEXEC | O_NOCTTY);
    tpm = open(TPM, O_RDWR | O_CLOEXEC);
#endif
    if (port < 0 || tpm < 0)
        die("cannot open %s: %s", port < 0 ? words[1] : TPM, strerror(errno));

    struct buffer body = room_for(1 << 20), key = room_for(1024), runtime = room_for(4096), none = room_for(1);
    put_text(&body, "{\"version\":\"0.4.0\",\"tee\":\"tpm\",\"extra-params\":\"\"}");
    char *nonce = member(ask("POST", "auth", &body), "nonce");
    if (strlen(nonce) > 128)
        die("a nonce of another length");

    uint8_t modulus[256], bound[48];
    uint32_t handle = make_key(modulus);
    put_text(&key, "{\"alg\":\"RSA-OAEP-256\",\"e\":\"AQAB\",\"kty\":\"RSA\",\"n\":\"");
    put_base64(&key, modulus, sizeof modulus, FOR_URLS);
    put_text(&key, "\"}");
    /* Canonical JSON (RFC 8785): names sorted, no white space. Its SHA-384, cut to 32 bytes, is the quote's nonce. */
    put_text(&runtime, "{\"additional-evidence\":\"\",\"nonce\":\"");
    put_text(&runtime, nonce);
    put_text(&runtime, "\",\"tee-pubkey\":");
    put(&runtime, key.data, key.used);
    put_text(&runtime, "}");
    sha384(&runtime, bound);

    body.used = 0;
    put_text(&body, "{\"runtime-data\":{\"nonce\":\"");
    put_text(&body, nonce);
    put_text(&body, "\",\"tee-pubkey\":");
    put(&body, key.data, key.used);
    put_text(&body, "},\"tee-evidence\":{\"additional_evidence\":\"\",\"primary_evidence\":");
    put_evidence(&body, bound);
    put_text(&body, "}}");
    ask("POST", "attest", &body);

    char path[512];
    if (snprintf(path, sizeof path, "resource/%s", words[2]) >= (int)sizeof path)
        die("the name of the resource is too long");
    const char *answer = ask("GET", path, &none);
    char *header = member(answer, "protected");
    struct buffer wrapped = from_base64url(member(answer, "encrypted_key"), 512), parameters = room_for(1024);
    put_number(&parameters, (uint32_t)wrapped.used, 2);
    put(&parameters, wrapped.data, wrapped.used);
    put_number(&parameters, ALG_NULL, 2); /* the key's own scheme: OAEP with SHA-256 */
    put_number(&parameters, 0, 2);
    struct buffer unwrapped = tpm_command(0x159, (uint32_t[]){ handle }, 1, 1, &parameters), cek = room_for(512);
    size_t size;
    const uint8_t *found = sized(&unwrapped, 14, &size);
    put(&cek, found, size);
    struct buffer iv = from_base64url(member(answer, "iv"), 64), tag = from_base64url(member(answer, "tag"), 64);
    struct buffer sealed = from_base64url(member(answer, "ciphertext"), SECRET_MAX);
    struct buffer secret = open_sealed(&cek, &iv, header, &sealed, &tag);
    if (is_last)
        extend_last();
    write_all(STDOUT_FILENO, secret.data, secret.used);
    explicit_bzero(secret.data, secret.used);
    explicit_bzero(cek.data, cek.used);
    return 0;
}
