/* What init.c stands on instead of a C library: system calls of Linux on x86-64, text, files and the console. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- System calls ---- */

enum {
    SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_CLOSE = 3, SYS_STAT = 4, SYS_RT_SIGPROCMASK = 14, SYS_IOCTL = 16,
    SYS_DUP2 = 33, SYS_NANOSLEEP = 35, SYS_SOCKET = 41, SYS_CONNECT = 42, SYS_SETSOCKOPT = 54, SYS_FORK = 57,
    SYS_EXECVE = 59, SYS_EXIT = 60, SYS_WAIT4 = 61, SYS_KILL = 62, SYS_CHDIR = 80, SYS_MKDIR = 83, SYS_SYMLINK = 88,
    SYS_CHMOD = 90, SYS_CHOWN = 92, SYS_FCHOWN = 93, SYS_SETUID = 105, SYS_SETGID = 106, SYS_SETSID = 112,
    SYS_SETGROUPS = 116, SYS_RT_SIGTIMEDWAIT = 128, SYS_SYNC = 162, SYS_MOUNT = 165, SYS_UMOUNT = 166,
    SYS_REBOOT = 169, SYS_SETHOSTNAME = 170,
};

struct moment { /* struct timespec, and timeval where there are no fractions */
    int64_t seconds, nanoseconds;
};

static long call(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

/* Numbers and pointers alike; what is left out is zero. */
#define ARGUMENT(x) ((long)(x))
#define CALL0(n) call(n, 0, 0, 0, 0, 0)
#define CALL1(n, a) call(n, ARGUMENT(a), 0, 0, 0, 0)
#define CALL2(n, a, b) call(n, ARGUMENT(a), ARGUMENT(b), 0, 0, 0)
#define CALL3(n, a, b, c) call(n, ARGUMENT(a), ARGUMENT(b), ARGUMENT(c), 0, 0)
#define CALL4(n, a, b, c, d) call(n, ARGUMENT(a), ARGUMENT(b), ARGUMENT(c), ARGUMENT(d), 0)
#define CALL5(n, a, b, c, d, e) call(n, ARGUMENT(a), ARGUMENT(b), ARGUMENT(c), ARGUMENT(d), ARGUMENT(e))

/* ---- Text ---- */

static size_t length_of(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

/* The text behind the prefix, or null if the text does not start with it. */
static const char *after(const char *prefix, const char *text)
{
    while (*prefix)
        if (*prefix++ != *text++)
            return 0;
    return text;
}

/* What follows the first such part of a text, or null. */
static const char *find(const char *part, const char *text)
{
    for (; *text; text++)
        if (after(part, text))
            return after(part, text);
    return 0;
}

static bool contains(const char *text, char wanted)
{
    char part[2] = {wanted, 0};
    return find(part, text);
}

static bool begin_alike(const char *one, const char *other, size_t length)
{
    while (length && *one && *one == *other)
        one++, other++, length--;
    return length == 0 || *one == *other;
}

/* Copies a text; where the copy ends. */
static char *copied(const char *text, char *place)
{
    while ((*place = *text++))
        place++;
    return place;
}

static char digit_in(char letter)
{
    return (char)(letter <= '9' ? letter - '0' : (letter | 32) - 'a' + 10);
}

/* The text with each %XX as the byte that it stands for, in place. */
static const char *decoded(char *text)
{
    char *place = text;
    for (const char *next = text; *next; next++)
        if (*next == '%' && next[1] && next[2]) {
            *place++ = (char)(digit_in(next[1]) << 4 | digit_in(next[2]));
            next += 2;
        } else
            *place++ = *next;
    *place = 0;
    return text;
}

static uint64_t number_in(const char *text)
{
    uint64_t number = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        number = number * 10 + (uint64_t)(*text - '0');
    return number;
}

/* A text that grows as far as there is room, and always ends. */
struct text {
    char content[4096];
    size_t length;
};

static void add(struct text *text, const char *more)
{
    while (*more && text->length < sizeof text->content - 1)
        text->content[text->length++] = *more++;
    text->content[text->length] = 0;
}

static void add_number(struct text *text, uint64_t number)
{
    char digits[21]; /* 2^64 has 20 */
    char *first = digits + sizeof digits - 1;
    *first = 0;
    do
        *--first = (char)('0' + number % 10);
    while (number /= 10);
    add(text, first);
}

/* ---- Console ---- */

enum { O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0100, O_TRUNC = 01000, O_NOCTTY = 0400 };

/* A line of its own, whatever the last one was. The number is left out where it is negative. */
static void say(const char *what, const char *which, int64_t number)
{
    struct text line = {0};
    add(&line, "\nMIKROM-INIT ");
    add(&line, what);
    add(&line, which);
    if (number >= 0) {
        add(&line, " ");
        add_number(&line, (uint64_t)number);
    }
    add(&line, "\n");
    CALL3(SYS_WRITE, 2, line.content, line.length);
}

static void open_as(const char *path, int flags, int descriptor)
{
    long opened = CALL2(SYS_OPEN, path, flags | O_NOCTTY);
    if (opened >= 0 && opened != descriptor) {
        CALL2(SYS_DUP2, opened, descriptor);
        CALL1(SYS_CLOSE, opened);
    }
}

/* ---- Files ---- */

/* Its content with a zero byte behind it; what is longer than there is room for counts as not there. */
static size_t read_file(const char *path, char *content, size_t room)
{
    long file = CALL2(SYS_OPEN, path, 0);
    size_t length = 0;
    long more = 0;
    while (file >= 0 && length < room && (more = CALL3(SYS_READ, file, content + length, room - length)) > 0)
        length += (size_t)more;
    CALL1(SYS_CLOSE, file);
    if (length == room)
        length = 0;
    content[length] = 0;
    return length;
}

static void write_file(const char *path, const struct text *text)
{
    long file = CALL3(SYS_OPEN, path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file >= 0)
        CALL3(SYS_WRITE, file, text->content, text->length);
    CALL1(SYS_CLOSE, file);
}
