/*
 * The wire of a guest's first interface, for tests: what comes on standard input is sent there, what arrives there is
 * written to standard output. Before each frame stands its length, in two bytes.
 * cc -static -nostdlib -ffreestanding -fno-stack-protector -I mikrom_reconcile/guest
 */
#include "linux.h"

enum { SYS_POLL = 7, SYS_BIND = 49 };
enum { AF_PACKET = 17, SOCK_RAW = 3, ALL_KINDS = 0x0300, FIRST_INTERFACE = 2, POLLIN = 1 };

struct address { /* struct sockaddr_ll */
    uint16_t family, protocol;
    int32_t interface;
    uint8_t rest[12];
};

struct poll { /* struct pollfd */
    int32_t descriptor;
    int16_t wanted, found;
};

struct frame {
    uint16_t length;
    uint8_t content[65536];
} __attribute__((packed));

static void read_all(void *place, size_t length)
{
    for (long more; length; length -= (size_t)more, place = (char *)place + more)
        if ((more = CALL3(SYS_READ, 0, place, length)) <= 0)
            CALL1(SYS_EXIT, 0);
}

static void write_all(const void *place, size_t length)
{
    for (long more; length; length -= (size_t)more, place = (const char *)place + more)
        if ((more = CALL3(SYS_WRITE, 1, place, length)) <= 0)
            CALL1(SYS_EXIT, 0);
}

void _start(void)
{
    static const struct address here = {.family = AF_PACKET, .protocol = ALL_KINDS, .interface = FIRST_INTERFACE};
    static struct frame frame;
    long wire = CALL3(SYS_SOCKET, AF_PACKET, SOCK_RAW, ALL_KINDS);
    CALL3(SYS_BIND, wire, &here, sizeof here);
    for (;;) {
        struct poll ends[] = {{.descriptor = 0, .wanted = POLLIN}, {.descriptor = (int)wire, .wanted = POLLIN}};
        CALL3(SYS_POLL, ends, 2, -1);
        if (ends[0].found) {
            read_all(&frame.length, sizeof frame.length);
            read_all(frame.content, frame.length);
            CALL3(SYS_WRITE, wire, frame.content, frame.length);
        }
        long length = ends[1].found ? CALL3(SYS_READ, wire, frame.content, sizeof frame.content - 1) : 0;
        if (length > 0) {
            frame.length = (uint16_t)length;
            write_all(&frame, sizeof frame.length + frame.length);
        }
    }
}
