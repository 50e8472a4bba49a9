/*
 * A shell of the guest for whoever connects to port 1024 of its vsock, for tests: busybox knows no such sockets.
 * cc -static -nostdlib -ffreestanding -fno-stack-protector -I mikrom_reconcile/guest
 */
#include "linux.h"

enum { SYS_ACCEPT = 43, SYS_BIND = 49, SYS_LISTEN = 50 };
enum { AF_VSOCK = 40, SOCK_STREAM = 1, ANY_CID = -1, PORT = 1024 };

struct address { /* struct sockaddr_vm */
    uint16_t family, reserved;
    uint32_t port;
    int32_t cid;
    uint32_t flags;
};

void _start(void)
{
    static const struct address here = {.family = AF_VSOCK, .port = PORT, .cid = ANY_CID};
    static const char *const words[] = {"sh", 0};
    long listening = CALL2(SYS_SOCKET, AF_VSOCK, SOCK_STREAM);
    CALL3(SYS_BIND, listening, &here, sizeof here);
    CALL2(SYS_LISTEN, listening, 8);
    for (;;) {
        long caller = CALL1(SYS_ACCEPT, listening);
        if (CALL0(SYS_FORK) == 0) {
            for (int descriptor = 0; descriptor < 3; descriptor++)
                CALL2(SYS_DUP2, caller, descriptor);
            CALL3(SYS_EXECVE, "/bin/sh", words, 0);
            CALL1(SYS_EXIT, 127);
        }
        CALL1(SYS_CLOSE, caller);
    }
}
