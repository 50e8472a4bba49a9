/* init: the first program of a VM whose root disk was made of a container image.
 *
 * A kernel starts it as PID 1. It makes a machine of the image: mounts, a name, an address, then starts what the
 * image runs, as the file /.mikrom/run says (host/oci/rootdisk.py writes it) and what the kernel's arguments say beside
 * it (core/specs/images.py), takes the ends of all processes, turns Ctrl-Alt-Del into the image's stop signal, and when
 * that process has ended says how on the console and resets the VM.
 *
 * It needs no C library, so that it runs beside whatever the image has: what it uses is in linux.h.
 * Read it from the bottom, init_main, upwards.
 */

#include "linux.h"

__asm__(".globl _start\n_start: xor %ebp, %ebp\n and $-16, %rsp\n call init_main\n");

/* ---- Mounts ---- */

enum { MS_RDONLY = 1, MS_NOSUID = 2, MS_NODEV = 4, MS_NOEXEC = 8, MS_REMOUNT = 32 };

/* No tmpfs on /run: images keep folders there that their programs need. */
static const struct {
    const char *what, *where, *options;
    int flags;
} mounts[] = {
    {"proc", "/proc", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"sysfs", "/sys", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID},
    {"devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC},
    {"tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV},
    {"mqueue", "/dev/mqueue", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
    {"cgroup2", "/sys/fs/cgroup", "", MS_NOSUID | MS_NODEV | MS_NOEXEC},
};

enum { FIRST_MOUNTS = 3, ALL_MOUNTS = sizeof mounts / sizeof *mounts }; /* without the first nothing can be known */

/* What a kernel lacks or has mounted already is left as it is. */
static void mount_all(size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) {
        CALL2(SYS_MKDIR, mounts[i].where, 0755);
        CALL5(SYS_MOUNT, mounts[i].what, mounts[i].where, mounts[i].what, mounts[i].flags, mounts[i].options);
    }
}

static void link_descriptors(void)
{
    CALL2(SYS_SYMLINK, "/proc/self/fd", "/dev/fd");
    CALL2(SYS_SYMLINK, "/proc/self/fd/0", "/dev/stdin");
    CALL2(SYS_SYMLINK, "/proc/self/fd/1", "/dev/stdout");
    CALL2(SYS_SYMLINK, "/proc/self/fd/2", "/dev/stderr");
}

/* ---- What is to be done: lines of /.mikrom/run, then words of the kernel's arguments that begin with "mikrom." ---- */

enum { MOST_WORDS = 4096, MOST_GROUPS = 1024, MOST_DRIVES = 32, RUN_FILE_BYTES = 1 << 20 };

static struct {
    const char *words[MOST_WORDS + 1], *environment[MOST_WORDS + 1];
    const char *folder, *path, *own_init;
    const char *drives[MOST_DRIVES], *secrets[MOST_WORDS];
    uint32_t groups[MOST_GROUPS];
    size_t word_count, variable_count, group_count, drive_count, secret_count;
    uint32_t uid, gid;
    int stop_signal;
} job;

/* NAME=VALUE, instead of what that name had before. */
static void set_variable(const char *variable)
{
    size_t at = 0, name = 0;
    while (variable[name] && variable[name] != '=')
        name++;
    while (at < job.variable_count && !begin_alike(job.environment[at], variable, name + 1))
        at++;
    if (at == MOST_WORDS)
        return;
    job.environment[at] = variable;
    job.variable_count += at == job.variable_count;
    if (after("PATH=", variable))
        job.path = after("PATH=", variable);
}

static void take_line(const char *line)
{
    const char *value;
    if ((value = after("arg=", line)) && job.word_count < MOST_WORDS)
        job.words[job.word_count++] = value;
    else if ((value = after("env=", line)))
        set_variable(value);
    else if ((value = after("dir=", line)))
        job.folder = value;
    else if ((value = after("uid=", line)))
        job.uid = (uint32_t)number_in(value);
    else if ((value = after("gid=", line)))
        job.gid = (uint32_t)number_in(value);
    else if ((value = after("group=", line)) && job.group_count < MOST_GROUPS)
        job.groups[job.group_count++] = (uint32_t)number_in(value);
    else if ((value = after("stop=", line)))
        job.stop_signal = (int)number_in(value);
    else if ((value = after("mount=", line)) && job.drive_count < MOST_DRIVES)
        job.drives[job.drive_count++] = value;
    else if ((value = after("secret=", line)) && job.secret_count < MOST_WORDS)
        job.secrets[job.secret_count++] = value;
    else if ((value = after("init=", line)))
        job.own_init = value;
}

static void read_job(void)
{
    static char lines[RUN_FILE_BYTES + 1];
    size_t length = read_file("/.mikrom/run", lines, RUN_FILE_BYTES);
    for (size_t at = 0; at < length; at += length_of(lines + at) + 1)
        take_line(lines + at);
}

/* ---- Network: ip=ADDRESS::GATEWAY:NETMASK:NAME:DEVICE:off:RESOLVER:RESOLVER of the kernel's arguments (nfsroot.rst of
 * Linux), which many kernels leave to the first program; and nameserver=ADDRESS (dracut.cmdline). ---- */

enum { ADDRESS, SERVER, GATEWAY, NETMASK, NAME, DEVICE, AUTOCONF, RESOLVER, SECOND_RESOLVER, FIELDS };

enum { AF_INET = 2, SOCK_DGRAM = 2, IFF_UP = 1, RTF_UP = 1, RTF_GATEWAY = 2, RTF_HOST = 4 };
enum { SIOCADDRT = 0x890b, SIOCSIFFLAGS = 0x8914, SIOCSIFADDR = 0x8916, SIOCSIFNETMASK = 0x891c };

struct address {
    uint16_t family, port;
    uint32_t number; /* in the order of the network */
    uint8_t rest[8];
};

struct interface_request {
    char name[16];
    union {
        struct address address;
        int16_t flags;
        uint8_t room[24];
    } of;
};

struct route_request { /* struct rtentry */
    uint64_t skipped;
    struct address target, gateway, mask;
    uint16_t flags, metric[13];
    const char *device;
    uint64_t rest[3];
};

static struct address address_in(const char *text)
{
    struct address address = {.family = AF_INET};
    for (int shift = 0; shift < 32; shift += 8) {
        address.number |= (uint32_t)(number_in(text) & 255) << shift;
        while (*text >= '0' && *text <= '9')
            text++;
        if (*text == '.')
            text++;
    }
    return address;
}

static struct interface_request request_for(const char *name)
{
    struct interface_request request = {0};
    for (size_t i = 0; name[i] && i < sizeof request.name - 1; i++)
        request.name[i] = name[i];
    return request;
}

static void bring_up(long socket, const char *name)
{
    struct interface_request request = request_for(name);
    request.of.flags = IFF_UP;
    CALL3(SYS_IOCTL, socket, SIOCSIFFLAGS, &request);
}

static void set_up_network(char *const fields[FIELDS])
{
    long socket = CALL3(SYS_SOCKET, AF_INET, SOCK_DGRAM, 0);
    const char *device = *fields[DEVICE] ? fields[DEVICE] : "eth0";
    bring_up(socket, "lo");
    if (*fields[ADDRESS]) {
        struct interface_request request = request_for(device);
        request.of.address = address_in(fields[ADDRESS]);
        CALL3(SYS_IOCTL, socket, SIOCSIFADDR, &request);
        request.of.address = address_in(fields[NETMASK]);
        CALL3(SYS_IOCTL, socket, SIOCSIFNETMASK, &request);
        bring_up(socket, device);
    }
    if (*fields[GATEWAY]) {
        struct route_request route = {.flags = RTF_UP | RTF_GATEWAY};
        route.target.family = route.mask.family = AF_INET;
        route.gateway = address_in(fields[GATEWAY]);
        CALL3(SYS_IOCTL, socket, SIOCADDRT, &route);
    }
    if (job.secret_count) { /* of the metadata service, which answers on the interface itself */
        struct route_request route = {.flags = RTF_UP | RTF_HOST, .device = device};
        route.target = address_in("169.254.169.254");
        CALL3(SYS_IOCTL, socket, SIOCADDRT, &route);
    }
    CALL1(SYS_CLOSE, socket);
}

static void add_resolver(struct text *resolvers, const char *address)
{
    if (!*address)
        return;
    add(resolvers, "nameserver ");
    add(resolvers, address);
    add(resolvers, "\n");
}

static void write_names(char *const fields[FIELDS], const struct text *resolvers)
{
    struct text hosts = {0}, name = {0};
    add(&hosts, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if (*fields[NAME]) {
        CALL2(SYS_SETHOSTNAME, fields[NAME], length_of(fields[NAME]));
        add(&hosts, *fields[ADDRESS] ? fields[ADDRESS] : "127.0.1.1");
        add(&hosts, "\t");
        add(&hosts, fields[NAME]);
        add(&hosts, "\n");
        add(&name, fields[NAME]);
        add(&name, "\n");
        write_file("/etc/hostname", &name);
    }
    write_file("/etc/hosts", &hosts);
    if (resolvers->length)
        write_file("/etc/resolv.conf", resolvers);
}

/* Splits the word into its fields, in place. */
static void split(char *word, char *fields[FIELDS])
{
    for (int field = 0; field < FIELDS; field++) {
        fields[field] = word;
        while (*word && *word != ':')
            word++;
        if (*word)
            *word++ = 0;
    }
}

static void take_kernel_arguments(void)
{
    static char arguments[4096];
    char *fields[FIELDS];
    struct text resolvers = {0};
    bool has_command = false;
    read_file("/proc/cmdline", arguments, sizeof arguments - 1);
    for (int field = 0; field < FIELDS; field++)
        fields[field] = "";
    for (char *word = arguments, *next; *word; word = next) {
        next = word;
        while (*next && *next != ' ' && *next != '\n')
            next++;
        if (*next)
            *next++ = 0;
        if (after("ip=", word) && contains(word, ':'))
            split(word + 3, fields);
        else if (after("nameserver=", word))
            add_resolver(&resolvers, after("nameserver=", word));
        else if (after("mikrom.", word)) {
            if (after("mikrom.arg=", word) && !has_command) { /* a command takes the place of the image's */
                has_command = true;
                job.word_count = 0;
            }
            take_line(decoded(word + 7));
        }
    }
    job.words[job.word_count] = 0;
    if (job.own_init)
        return; /* which sets its own network up */
    add_resolver(&resolvers, fields[RESOLVER]);
    add_resolver(&resolvers, fields[SECOND_RESOLVER]);
    set_up_network(fields);
    write_names(fields, &resolvers);
}

/* ---- Secrets: variables that only Firecracker's metadata service knows, by its version 2 ---- */

enum { SOCK_STREAM = 1, SOL_SOCKET = 1, SO_RCVTIMEO = 20, SO_SNDTIMEO = 21, ANSWER_BYTES = 1 << 16 };

/* The body of an HTTP answer, once there is all of it. */
static const char *body_in(const char *answer)
{
    const char *length = find("Content-Length: ", answer), *body = find("\r\n\r\n", answer);
    return length && body && length_of(body) >= number_in(length) ? body : 0;
}

/* One request on a connection of its own; the body if the answer's status is 200, else null. */
static const char *answer_to(const struct text *request)
{
    static char answer[ANSWER_BYTES + 1];
    struct address service = address_in("169.254.169.254");
    struct moment patience = {5, 0};
    const char *body = 0;
    long connection = CALL3(SYS_SOCKET, AF_INET, SOCK_STREAM, 0);
    service.port = 80 << 8; /* in the order of the network */
    CALL5(SYS_SETSOCKOPT, connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    CALL5(SYS_SETSOCKOPT, connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (CALL3(SYS_CONNECT, connection, &service, sizeof service) == 0) {
        size_t length = 0;
        long more;
        CALL3(SYS_WRITE, connection, request->content, request->length);
        while (!body && (more = CALL3(SYS_READ, connection, answer + length, ANSWER_BYTES - length)) > 0) {
            length += (size_t)more;
            answer[length] = 0;
            body = body_in(answer);
        }
    }
    CALL1(SYS_CLOSE, connection);
    return body && after("HTTP/1.1 200", answer) ? body : 0;
}

static const char *secret_of(const char *name, const char *token)
{
    struct text request = {0};
    add(&request, "GET /mikrom/env/");
    add(&request, name);
    add(&request, " HTTP/1.1\r\nX-metadata-token: ");
    add(&request, token);
    add(&request, "\r\n\r\n");
    return answer_to(&request);
}

/* Makes variables of all secrets; whether each could be read. */
static bool read_secrets(void)
{
    static char variables[2 * ANSWER_BYTES]; /* the service holds 51,200 bytes */
    struct text request = {0}, token = {0};
    char *end = variables;
    if (!job.secret_count)
        return true;
    add(&request, "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n");
    const char *value = answer_to(&request);
    add(&token, value ? value : "");
    for (size_t i = 0; i < job.secret_count; i++) {
        const char *name = job.secrets[i], *variable = end;
        value = secret_of(name, token.content);
        if (!value || length_of(name) + length_of(value) + 2 > (size_t)(variables + sizeof variables - end)) {
            say("cannot read the secret ", name, -1);
            return false;
        }
        end = copied(name, end);
        *end++ = '=';
        end = copied(value, end) + 1;
        set_variable(variable);
    }
    return true;
}

/* ---- Disks: the root disk and drives, each grown to what its file on the host has become ---- */

enum { MS_DRIVE = MS_NOSUID | MS_NODEV, BLKGETSIZE64 = 0x80081272, BLOCK = 4096, READ_ONLY = -30 };
#define EXT4_IOC_RESIZE_FS 0x40086610ul

struct status { /* struct stat */
    uint64_t device, inode, links;
    uint32_t mode, uid, gid;
    uint8_t rest[108];
};

static void grow(const char *device, const char *folder)
{
    long disk = CALL2(SYS_OPEN, device, 0), files = CALL2(SYS_OPEN, folder, 0);
    uint64_t size = 0;
    if (CALL3(SYS_IOCTL, disk, BLKGETSIZE64, &size) == 0) {
        size /= BLOCK;
        long result = CALL3(SYS_IOCTL, files, EXT4_IOC_RESIZE_FS, &size);
        if (result < 0 && result != READ_ONLY)
            say("cannot grow ", folder, -1);
    }
    CALL1(SYS_CLOSE, disk);
    CALL1(SYS_CLOSE, files);
}

/* Makes a folder with those above it; what the image lacks belongs to its user. */
static void make_folder(const char *path)
{
    struct text above = {0};
    for (size_t i = 0; path[i]; i++) {
        char letter[2] = {path[i], 0};
        add(&above, letter);
        if (path[i + 1] == '/' || !path[i + 1])
            if (CALL2(SYS_MKDIR, above.content, 0755) == 0)
                CALL3(SYS_CHOWN, above.content, job.uid, job.gid);
    }
}

/* Mounts what "DEVICE:FOLDER" says. A drive that still is root's, as one that was just made, gets the owner and the
 * mode of the folder that it hides. */
static bool mount_drive(const char *drive)
{
    struct text device = {0};
    struct status hidden = {0}, shown = {0};
    for (; *drive && *drive != ':'; drive++) {
        char letter[2] = {*drive, 0};
        add(&device, letter);
    }
    const char *folder = drive + (*drive == ':');
    make_folder(folder);
    CALL2(SYS_STAT, folder, &hidden);
    int64_t error = -CALL5(SYS_MOUNT, device.content, folder, "ext4", MS_DRIVE, 0);
    if (error) {
        say("cannot mount ", folder, -1);
        say("the error is ", "number", error);
        return false;
    }
    grow(device.content, folder);
    CALL2(SYS_STAT, folder, &shown);
    if (shown.uid == 0 && shown.gid == 0 && (hidden.uid || hidden.gid)) {
        CALL3(SYS_CHOWN, folder, hidden.uid, hidden.gid);
        CALL2(SYS_CHMOD, folder, hidden.mode & 07777);
    }
    return true;
}

static bool set_up_disks(void)
{
    grow("/dev/vda", "/");
    for (size_t i = 0; i < job.drive_count; i++)
        if (!mount_drive(job.drives[i]))
            return false;
    return true;
}

/* ---- What the image runs, as its user ---- */

/* Makes the image's WORKDIR, as other runtimes do, and goes there. */
static void enter_folder(const char *folder)
{
    make_folder(folder);
    if (CALL1(SYS_CHDIR, folder) < 0)
        say("cannot enter WORKDIR ", folder, -1);
}

/* Returns only where it failed, with the error's number. */
static int64_t execute(void)
{
    const char *program = job.words[0];
    if (contains(program, '/'))
        return -CALL3(SYS_EXECVE, program, job.words, job.environment);
    int64_t error = 2; /* ENOENT */
    for (const char *folder = job.path; folder && *folder;) {
        struct text path = {0};
        while (*folder && *folder != ':') {
            char letter[2] = {*folder++, 0};
            add(&path, letter);
        }
        folder += *folder == ':';
        add(&path, "/");
        add(&path, program);
        int64_t found = -CALL3(SYS_EXECVE, path.content, job.words, job.environment);
        if (found != 2 && found != 20) /* ENOENT, ENOTDIR */
            error = found;
    }
    return error;
}

static _Noreturn void become_job(void)
{
    uint64_t no_signals = 0;
    CALL0(SYS_SETSID);
    open_as("/dev/null", 0, 0);
    for (int descriptor = 1; descriptor <= 2; descriptor++) /* so that it may open /dev/stdout, too */
        CALL3(SYS_FCHOWN, descriptor, job.uid, job.gid);
    enter_folder(job.folder);
    if (CALL2(SYS_SETGROUPS, job.group_count, job.groups) < 0 || CALL1(SYS_SETGID, job.gid) < 0 ||
        CALL1(SYS_SETUID, job.uid) < 0)
        say("cannot become the image's USER", "", job.uid);
    else {
        CALL4(SYS_RT_SIGPROCMASK, 2, &no_signals, 0, sizeof no_signals); /* SIG_SETMASK */
        int64_t error = execute();
        say("cannot run ", job.words[0], -1);
        say("the error is ", "number", error);
    }
    for (;;)
        CALL1(SYS_EXIT, 127);
}

/* ---- Processes ---- */

enum { SIGINT = 2, SIGKILL = 9, SIGTERM = 15, SIGCHLD = 17, SIGPWR = 30, WNOHANG = 1, NO_CHILD = -10 };

static uint64_t bit(int signal)
{
    return 1ull << (signal - 1);
}

/* Runs the job until it has ended; its status as wait(2) has it. */
static int run_job(void)
{
    /* SIGINT is what Ctrl-Alt-Del becomes, SIGPWR what a power switch may. */
    uint64_t awaited = bit(SIGCHLD) | bit(SIGINT) | bit(SIGTERM) | bit(SIGPWR);
    CALL4(SYS_RT_SIGPROCMASK, 0, &awaited, 0, sizeof awaited); /* SIG_BLOCK */
    long job_pid = CALL0(SYS_FORK);
    if (job_pid == 0)
        become_job();
    for (;;) {
        int status = 0;
        long ended;
        while ((ended = CALL4(SYS_WAIT4, -1, &status, WNOHANG, 0)) > 0)
            if (ended == job_pid)
                return status;
        long signal = CALL4(SYS_RT_SIGTIMEDWAIT, &awaited, 0, 0, sizeof awaited);
        if (signal > 0 && signal != SIGCHLD)
            CALL2(SYS_KILL, job_pid, job.stop_signal);
    }
}

/* Ends all that is left: asked first, then made to. */
static void end_the_rest(void)
{
    struct moment pause = {0, 20 * 1000 * 1000};
    CALL2(SYS_KILL, -1, SIGTERM);
    for (int tries = 0; tries < 100; tries++) { /* two seconds */
        int status;
        while (CALL4(SYS_WAIT4, -1, &status, WNOHANG, 0) > 0)
            continue;
        if (CALL4(SYS_WAIT4, -1, &status, WNOHANG, 0) == NO_CHILD)
            break;
        CALL2(SYS_NANOSLEEP, &pause, 0);
    }
    CALL2(SYS_KILL, -1, SIGKILL);
}

/* Says how it ended, which its host looks for, writes everything back and resets the VM. */
static _Noreturn void leave(int status)
{
    say("exit status", "", status);
    for (size_t i = job.drive_count; i > 0; i--)
        CALL2(SYS_UMOUNT, find(":", job.drives[i - 1]), 0);
    CALL0(SYS_SYNC);
    CALL5(SYS_MOUNT, 0, "/", 0, MS_REMOUNT | MS_RDONLY, 0);
    for (;;)
        CALL3(SYS_REBOOT, 0xfee1dead, 672274793, 0x01234567); /* LINUX_REBOOT_CMD_RESTART */
}

/* Leaves the machine to an init of the image's own. */
static _Noreturn void become_own_init(void)
{
    const char *words[] = {job.own_init, 0}, *environment[] = {"HOME=/", "TERM=linux", 0};
    int64_t error = -CALL3(SYS_EXECVE, job.own_init, words, environment);
    say("cannot run the image's own ", job.own_init, -1);
    say("the error is ", "number", error);
    leave(127);
}

_Noreturn void init_main(void)
{
    mount_all(0, FIRST_MOUNTS);
    for (int descriptor = 0; descriptor <= 2; descriptor++)
        open_as("/dev/console", O_RDWR, descriptor);
    read_job();
    take_kernel_arguments();
    if (!set_up_disks())
        leave(1);
    if (job.own_init)
        become_own_init();
    CALL3(SYS_REBOOT, 0xfee1dead, 672274793, 0); /* LINUX_REBOOT_CMD_CAD_OFF: Ctrl-Alt-Del becomes SIGINT */
    mount_all(FIRST_MOUNTS, ALL_MOUNTS);
    link_descriptors();
    if (!read_secrets())
        leave(1);
    if (!job.word_count) {
        say("finds nothing to run in /.mikrom/run", "", -1);
        leave(1);
    }
    say("runs ", job.words[0], -1);
    int status = run_job();
    end_the_rest();
    leave(status & 127 ? 128 + (status & 127) : status >> 8 & 255); /* the former: it was ended by a signal */
}
