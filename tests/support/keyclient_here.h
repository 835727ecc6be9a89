/* In the place of the kernel's cryptography: the test process answers on descriptor 5. Included by keyclient.c.
 *
 *     'H' length data -> 48 bytes      'O' five times (length data): key, iv, header, sealed, tag -> length data, or 0xffffffff */
static void tell(const void *data, size_t count)
{
    uint32_t length = (uint32_t)count;
    write_all(5, (const uint8_t *)&length, sizeof length);
    write_all(5, data, count);
}

static void hear(void *data, size_t count)
{
    for (uint8_t *at = data; count;) {
        ssize_t got = read(5, at, count);
        if (got <= 0)
            die("the test went");
        at += got;
        count -= (size_t)got;
    }
}

static void sha384(const struct buffer *data, uint8_t digest[48])
{
    write_all(5, (const uint8_t *)"H", 1);
    tell(data->data, data->used);
    hear(digest, 48);
}

static struct buffer open_sealed(const struct buffer *key, const struct buffer *iv, const char *header,
                                 const struct buffer *sealed, const struct buffer *tag)
{
    if (key->used != 32 || iv->used != 12 || tag->used != 16 || sealed->used > SECRET_MAX)
        die("the broker's answer has parts of another length");
    write_all(5, (const uint8_t *)"O", 1);
    tell(key->data, key->used);
    tell(iv->data, iv->used);
    tell(header, strlen(header));
    tell(sealed->data, sealed->used);
    tell(tag->data, tag->used);
    uint32_t length;
    hear(&length, sizeof length);
    if (length == 0xffffffff)
        die("what the broker sent is not authentic");
    struct buffer plain = room_for(length);
    hear(plain.data, length);
    plain.used = length;
    return plain;
}
