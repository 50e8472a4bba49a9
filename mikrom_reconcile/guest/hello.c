/* hello: the demo guest of mikrom. It has no kernel below it: Firecracker, or QEMU,
 * starts it as if it were one.
 *
 * It prints a line, sleeps, and ends when the host sends Ctrl-Alt-Del. Boot arguments make it behave
 * worse (README.md lists them), so that the reconciler can be tried against guests that exit, crash,
 * hang, burn CPU, take memory or never stop talking.
 *
 * Read it from the bottom, guest_main, upwards. Port numbers and bits are those of the IBM PC, as far as
 * both imitate it: a serial port, a keyboard controller, a timer, two interrupt controllers.
 */

#include <stdbool.h>
#include <stdint.h>

static inline void write_port(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t read_port(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* ---- Serial console ---- */

enum { SERIAL_DATA = 0x3f8 };

/* Does not ask whether the port is ready: Firecracker's always is. */
static void print(const char *text)
{
    while (*text)
        write_port(SERIAL_DATA, (uint8_t)*text++);
}

static void print_number(uint64_t number)
{
    char digits[21]; /* 2^64 has 20 */
    char *first = digits + sizeof digits - 1;
    *first = 0;
    do
        *--first = (char)('0' + number % 10);
    while (number /= 10);
    print(first);
}

static void print_counted(const char *label, uint64_t number)
{
    print(label);
    print_number(number);
    print("\n");
}

/* ---- Keyboard controller (i8042): how the host asks for a stop, and how the guest ends ---- */

enum {
    KEYBOARD_DATA = 0x60,
    KEYBOARD_CONTROL = 0x64,
    KEYBOARD_HAS_DATA = 0x01,
    KEYBOARD_RESET_MACHINE = 0xfe,
    SCANCODE_DELETE = 0x71,
};

/* Delete alone is proof enough: Ctrl-Alt-Del is all that Firecracker can type. */
static bool ctrl_alt_del_was_pressed(void)
{
    bool pressed = false;
    while (read_port(KEYBOARD_CONTROL) & KEYBOARD_HAS_DATA)
        if (read_port(KEYBOARD_DATA) == SCANCODE_DELETE)
            pressed = true;
    return pressed;
}

/* The one clean end there is: Firecracker has no power switch, but exits with 0 on a keyboard reset. */
static _Noreturn void leave(const char *last_line)
{
    print(last_line);
    write_port(KEYBOARD_CONTROL, KEYBOARD_RESET_MACHINE);
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* ---- Interrupts: what wakes the guest from hlt ---- */

enum {
    PIC_COMMAND = 0x20,
    PIC_MASK = 0x21,
    SECOND_PIC_COMMAND = 0xa0,
    SECOND_PIC_MASK = 0xa1,
    PIC_END_OF_INTERRUPT = 0x20,

    TIMER_IRQ = 0,
    KEYBOARD_IRQ = 1,
    SPURIOUS_IRQ = 7,
    FIRST_IRQ_VECTOR = 32, /* 0 to 31 are the CPU's own exceptions */

    TIMER_CHANNEL_0 = 0x40,
    TIMER_COMMAND = 0x43,
    TIMER_INPUT_HZ = 1193182,
    TICKS_PER_S = 20, /* each tick costs CPU; the timer cannot count slower than 18.2 */
    MS_PER_TICK = 1000 / TICKS_PER_S,

    CODE_SEGMENT = 8, /* in the descriptor table that Firecracker loads */
    INTERRUPT_GATE = 0x8e,
};

struct interrupt_gate {
    uint16_t handler_low, segment;
    uint8_t stack, type;
    uint16_t handler_middle;
    uint32_t handler_high, reserved;
};

struct __attribute__((packed)) interrupt_table_register {
    uint16_t limit;
    uint64_t base;
};

struct interrupt_frame;

/* No gates for exceptions: the guest raises none but to crash, and a mistake should crash it too. */
static struct interrupt_gate interrupt_table[FIRST_IRQ_VECTOR + 8];
static volatile uint64_t ticks;

__attribute__((interrupt)) static void on_timer(struct interrupt_frame *frame)
{
    (void)frame;
    ticks++;
    write_port(PIC_COMMAND, PIC_END_OF_INTERRUPT);
}

/* Only wakes the loop in live(), which looks at the keyboard itself. */
__attribute__((interrupt)) static void on_keyboard(struct interrupt_frame *frame)
{
    (void)frame;
    write_port(PIC_COMMAND, PIC_END_OF_INTERRUPT);
}

/* What the controller reports for an interrupt that went away; it wants no acknowledgement. */
__attribute__((interrupt)) static void on_spurious(struct interrupt_frame *frame)
{
    (void)frame;
}

static void handle_irq(int irq, void (*handler)(struct interrupt_frame *))
{
    uint64_t address = (uint64_t)handler;
    struct interrupt_gate *gate = &interrupt_table[FIRST_IRQ_VECTOR + irq];
    gate->handler_low = (uint16_t)address;
    gate->handler_middle = (uint16_t)(address >> 16);
    gate->handler_high = (uint32_t)(address >> 32);
    gate->segment = CODE_SEGMENT;
    gate->type = INTERRUPT_GATE;
}

static void load_interrupt_table(void *base, uint16_t size)
{
    struct interrupt_table_register table = {(uint16_t)(size - 1), (uint64_t)base};
    __asm__ volatile("lidt %0" : : "m"(table));
}

/* The controllers start with vectors that collide with CPU exceptions, so they are given new ones.
 * What is not listened to stays masked: a guest that ignores everything is never woken. */
static void set_up_interrupts(bool timer, bool keyboard)
{
    handle_irq(TIMER_IRQ, on_timer);
    handle_irq(KEYBOARD_IRQ, on_keyboard);
    handle_irq(SPURIOUS_IRQ, on_spurious);
    load_interrupt_table(interrupt_table, sizeof interrupt_table);

    write_port(PIC_COMMAND, 0x11); /* begin, four words follow */
    write_port(PIC_MASK, FIRST_IRQ_VECTOR);
    write_port(PIC_MASK, 0x04); /* the second controller hangs on line 2 */
    write_port(PIC_MASK, 0x01); /* 8086 mode */
    write_port(SECOND_PIC_COMMAND, 0x11);
    write_port(SECOND_PIC_MASK, FIRST_IRQ_VECTOR + 8);
    write_port(SECOND_PIC_MASK, 0x02);
    write_port(SECOND_PIC_MASK, 0x01);

    write_port(PIC_MASK, (uint8_t) ~(timer << TIMER_IRQ | keyboard << KEYBOARD_IRQ));
    write_port(SECOND_PIC_MASK, 0xff);
}

static void start_timer(void)
{
    uint16_t divisor = TIMER_INPUT_HZ / TICKS_PER_S;
    write_port(TIMER_COMMAND, 0x34); /* channel 0, low byte then high byte, periodic */
    write_port(TIMER_CHANNEL_0, (uint8_t)divisor);
    write_port(TIMER_CHANNEL_0, (uint8_t)(divisor >> 8));
}

/* sti takes effect after the instruction behind it, so no interrupt slips in before hlt. */
static void sleep_until_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* ---- Boot arguments: words between spaces; those of a Linux kernel are none of our business ---- */

enum mode { OBEY, IGNORE, EXIT, CRASH, SPIN, TOUCH, FLOOD };

struct request {
    enum mode mode;
    uint64_t amount; /* milliseconds or MiB */
    bool heartbeat;
};

static const struct {
    const char *word;
    enum mode mode;
    bool takes_amount;
} modes[] = {
    {"ignore", IGNORE, false}, {"exit", EXIT, true},   {"crash", CRASH, true},
    {"spin", SPIN, false},     {"touch", TOUCH, true}, {"flood", FLOOD, false},
};

static bool ends_word(char c)
{
    return (uint8_t)c <= ' ';
}

/* The text behind the prefix, or null if the text does not start with it. */
static const char *after(const char *prefix, const char *text)
{
    while (*prefix)
        if (*prefix++ != *text++)
            return 0;
    return text;
}

/* The text behind the key, or null if no word starts with it. Of two words the last one counts, as in
 * Linux: what a user adds comes behind what an image brings. */
static const char *value_of(const char *key, const char *boot_args)
{
    const char *value = 0;
    for (const char *c = boot_args; *c; c++)
        if (c == boot_args || ends_word(c[-1])) {
            const char *found = after(key, c);
            if (found)
                value = found;
        }
    return value;
}

/* At most nine digits, so that no sum or product of it overflows. */
static bool read_amount(const char *text, uint64_t *amount)
{
    int digits = 0;
    *amount = 0;
    for (; *text >= '0' && *text <= '9' && digits < 9; text++, digits++)
        *amount = *amount * 10 + (uint64_t)(*text - '0');
    return digits > 0 && ends_word(*text);
}

static bool read_mode(const char *value, struct request *request)
{
    for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++) {
        const char *rest = after(modes[i].word, value);
        if (!rest)
            continue;
        if (modes[i].takes_amount ? *rest == ':' && read_amount(rest + 1, &request->amount) : ends_word(*rest)) {
            request->mode = modes[i].mode;
            return true;
        }
    }
    return false;
}

static struct request read_request(const char *boot_args)
{
    struct request request = {OBEY, 0, false};
    const char *heartbeat = value_of("mikrom.heartbeat=", boot_args);
    request.heartbeat = heartbeat && *heartbeat == '1' && ends_word(heartbeat[1]);
    const char *mode = value_of("mikrom.mode=", boot_args);
    if (mode && !read_mode(mode, &request))
        print("MIKROM-UNKNOWN-MODE\n");
    return request;
}

/* ---- What a kernel is told: by Firecracker in the zero page (Documentation/arch/x86/zero-page.rst of Linux), by QEMU in
 * the start info (docs/misc/pvh.pandoc of Xen). ---- */

struct __attribute__((packed)) memory_range {
    uint64_t start, size;
    uint32_t type;
};

struct __attribute__((packed)) zero_page {
    uint8_t skipped_to_1e8[0x1e8];
    uint8_t memory_ranges;
    uint8_t skipped_to_228[0x228 - 0x1e9];
    uint32_t boot_args;
    uint8_t skipped_to_2d0[0x2d0 - 0x22c];
    struct memory_range memory[];
};

struct padded_memory_range {
    struct memory_range range;
    uint32_t reserved;
};

struct start_info {
    uint8_t skipped_to_24[24];
    uint64_t boot_args;
    uint64_t root_of_acpi_tables;
    uint64_t memory;
    uint32_t memory_ranges;
};

enum { USABLE_MEMORY = 1, MIB = 1 << 20, FREE_MEMORY = 2 * MIB, MAPPED_MEMORY = 1024 * MIB };

/* Where the range ends from which the guest may take memory, else what is known so far. */
static uint64_t end_of_memory(struct memory_range range, uint64_t end)
{
    if (range.type != USABLE_MEMORY || range.start >= FREE_MEMORY)
        return end;
    end = range.start + range.size;
    return end < MAPPED_MEMORY ? end : MAPPED_MEMORY;
}

/* ---- Behaviours ---- */

static _Noreturn void spin(void)
{
    for (;;)
        __asm__ volatile("pause");
}

/* Rude on purpose: it clears the screen, rings the bell and is not valid UTF-8. */
static _Noreturn void flood(void)
{
    for (uint64_t line = 1;; line++)
        print_counted("MIKROM-FLOOD \033[2J\a\xff ", line);
}

/* One byte in each page makes the host give it memory. Says how much there was to take. */
static void touch(uint64_t wanted_mib, uint64_t end)
{
    uint64_t touched_mib = 0;
    for (uint64_t at = FREE_MEMORY; touched_mib < wanted_mib && at + MIB <= end; at += MIB, touched_mib++)
        for (uint64_t page = at; page < at + MIB; page += 4096)
            *(volatile uint8_t *)page = 1;
    print_counted("MIKROM-TOUCHED ", touched_mib);
}

/* Without an interrupt table an exception faults, and so does the fault: a triple fault. */
static _Noreturn void crash(void)
{
    print("MIKROM-CRASH\n");
    load_interrupt_table(0, 1);
    for (;;)
        __asm__ volatile("int3");
}

/* Looks at everything before it sleeps, so that a Ctrl-Alt-Del sent before this point counts as well. */
static _Noreturn void live(struct request request)
{
    bool listens = request.mode != IGNORE;
    bool is_timed = request.mode == EXIT || request.mode == CRASH;
    uint64_t beats = 0;

    set_up_interrupts(is_timed || request.heartbeat, listens);
    if (is_timed || request.heartbeat)
        start_timer();
    for (;;) {
        if (listens && ctrl_alt_del_was_pressed())
            leave("MIKROM-CAD bye\n");
        if (is_timed && ticks * MS_PER_TICK >= request.amount) {
            if (request.mode == CRASH)
                crash();
            leave("MIKROM-EXIT bye\n");
        }
        if (request.heartbeat && ticks / TICKS_PER_S > beats)
            print_counted("MIKROM-BEAT ", ++beats);
        sleep_until_interrupt();
    }
}

static _Noreturn void run(const char *boot_args, uint64_t end)
{
    print("MIKROM-UP ");
    print(boot_args);
    print("\n");

    struct request request = read_request(boot_args);
    if (request.mode == SPIN)
        spin();
    if (request.mode == FLOOD)
        flood();
    if (request.mode == TOUCH)
        touch(request.amount, end);
    live(request);
}

_Noreturn void guest_main(const struct zero_page *zero_page)
{
    uint64_t end = 0;
    for (int i = 0; i < zero_page->memory_ranges; i++)
        end = end_of_memory(zero_page->memory[i], end);
    run((const char *)(uint64_t)zero_page->boot_args, end);
}

_Noreturn void guest_main_pvh(const struct start_info *start_info)
{
    const struct padded_memory_range *memory = (const struct padded_memory_range *)start_info->memory;
    uint64_t end = 0;
    for (uint32_t i = 0; i < start_info->memory_ranges; i++)
        end = end_of_memory(memory[i].range, end);
    run((const char *)start_info->boot_args, end);
}
